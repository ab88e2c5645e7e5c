{{/* Begins the name of what belongs to the whole release. */}}
{{- define "kafka-workers.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 53 | trimSuffix "-" -}}
{{- end }}

{{/* Begins the default names of the workers: nothing, except with fullnameOverride, and where a parent chart gives this one an alias. */}}
{{- define "kafka-workers.prefix" -}}
{{- with .Values.fullnameOverride | default (ternary "" .Chart.Name (eq .Chart.Name "kafka-workers")) }}{{ . }}-{{ end -}}
{{- end }}

{{/*
Every worker, running or not, as a JSON list of contexts for the templates below; each adds "root". `component` tells apart the pods
of the release's workers, `path` is where the values are, `worker` has them with all defaults filled in.
*/}}
{{- define "kafka-workers.everyWorker" -}}
{{- $prefix := include "kafka-workers.prefix" . -}}
{{- $topics := list .Values.kafka.topic -}}
{{- $workers := dict -}}
{{- range $path := list "consumer" "producer" "lagExporter" "canary" -}}
{{- /* The lag exporter and the canary have resources of their own. Helm removes a null there, and the entry of `pod` would take its place. */}}
{{- $defaults := ternary (omit $.Values.pod "resources") $.Values.pod (has $path (list "lagExporter" "canary")) -}}
{{- $worker := pick $.Values "podSecurityContext" "securityContext" | deepCopy -}}
{{- range $values := list $defaults (index $.Values $path) }}{{ include "kafka-workers.overwrite" (dict "into" $worker "from" $values) }}{{ end -}}
{{- $_ := set $workers $path $worker -}}
{{- end -}}
{{- $consumer := $workers.consumer -}}
{{- $_ := set $consumer "name" ($consumer.name | default (print $prefix "consumer")) -}}
{{- $_ := set $consumer "groupId" ($consumer.groupId | default (trimSuffix "-" $prefix) | default "kafka-workers") -}}
{{- $_ := set $consumer "topics" ($consumer.topics | default $topics) -}}
{{- $all := list (dict "kind" "consumer" "component" "consumer" "path" "consumer" "command" "consume" "worker" $consumer) -}}
{{- range $key, $own := .Values.consumers -}}
{{- $worker := deepCopy $consumer -}}
{{- $_ := set $worker "enabled" true -}}
{{- $_ := set $worker "name" (printf "%s-%s" $consumer.name $key) -}}
{{- $_ := set $worker "groupId" (printf "%s-%s" $consumer.groupId $key) -}}
{{- $_ := set $worker "userSecret" "" -}}
{{- $_ := set $worker "serviceAccount" (merge (pick $.Values.pod.serviceAccount "create" "name") (omit $worker.serviceAccount "create" "name")) -}}
{{- include "kafka-workers.overwrite" (dict "into" $worker "from" $own) -}}
{{- $all = append $all (dict "kind" "consumer" "component" (printf "consumer-%s" $key) "path" (printf "consumers.%s" $key) "command" "consume" "worker" $worker) -}}
{{- end -}}
{{- $producer := $workers.producer -}}
{{- $_ := set $producer "name" ($producer.name | default (print $prefix "producer")) -}}
{{- $_ := set $producer "topics" $topics -}}
{{- /* As a Deployment: the old one delivers what it has before the new one begins. */}}
{{- $_ := set $producer "strategy" (dict "type" "Recreate") -}}
{{- $exporter := $workers.lagExporter -}}
{{- $_ := set $exporter "name" ($exporter.name | default (print $prefix "lag-exporter")) -}}
{{- /* The new one has made its first round before the old one goes. */}}
{{- $_ := set $exporter "strategy" (dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" 1 "maxUnavailable" 0)) -}}
{{- $canary := $workers.canary -}}
{{- $_ := set $canary "name" ($canary.name | default (print $prefix "canary")) -}}
{{- $_ := set $canary "topics" (list ($canary.topic | default (print ($prefix | default "kafka-workers-") "canary"))) -}}
{{- /* The old one has received its messages before the new one begins. */}}
{{- $_ := set $canary "strategy" (dict "type" "Recreate") -}}
{{- $_ := set $canary "shutdownTimeout" 10 -}}
{{- concat $all (list
    (dict "kind" "producer" "component" "producer" "path" "producer" "command" "produce" "worker" $producer)
    (dict "kind" "lag-exporter" "component" "lag-exporter" "path" "lagExporter" "command" "lag-exporter" "worker" $exporter)
    (dict "kind" "canary" "component" "canary" "path" "canary" "command" "canary" "worker" $canary)) | toJson -}}
{{- end }}

{{/* The workers that run, as a JSON list of contexts. */}}
{{- define "kafka-workers.workers" -}}
{{- $running := list -}}
{{- range include "kafka-workers.everyWorker" . | fromJsonArray }}{{ if .worker.enabled }}{{ $running = append $running . }}{{ end }}{{ end -}}
{{- $running | toJson -}}
{{- end }}

{{/* The consumers that run, as a JSON list of contexts. */}}
{{- define "kafka-workers.consumers" -}}
{{- $consumers := list -}}
{{- range include "kafka-workers.workers" . | fromJsonArray }}{{ if eq .kind "consumer" }}{{ $consumers = append $consumers . }}{{ end }}{{ end -}}
{{- $consumers | toJson -}}
{{- end }}

{{/* Writes the values of the map `from` over those of the map `into`; null removes one. Sprig's merge would take false, 0 and "" for absent values. */}}
{{- define "kafka-workers.overwrite" -}}
{{- range $name, $value := .from -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $.into $name -}}
{{- else if kindIs "map" $value -}}
{{- if not (kindIs "map" (get $.into $name)) }}{{ $_ := set $.into $name dict }}{{ end -}}
{{- include "kafka-workers.overwrite" (dict "into" (get $.into $name) "from" $value) -}}
{{- else -}}
{{- $_ := set $.into $name $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The image of a worker as JSON. A worker that names an image of its own inherits no digest and no whole reference. */}}
{{- define "kafka-workers.image" -}}
{{- $image := deepCopy .root.Values.image -}}
{{- with .worker.image -}}
{{- if or .repository .tag .digest .reference }}{{ $image = merge (dict "digest" "" "reference" "") (omit $image "digest" "reference") }}{{ end -}}
{{- include "kafka-workers.overwrite" (dict "into" $image "from" .) -}}
{{- end -}}
{{- with $image -}}
{{- $name := printf "%s:%s" .repository (.tag | default $.root.Chart.AppVersion) -}}
{{- if .digest }}{{ $name = printf "%s@%s" .repository .digest }}{{ end -}}
{{- dict "name" (.reference | default $name) "pullPolicy" .pullPolicy | toJson -}}
{{- end -}}
{{- end }}

{{/* What selects the pods of a release; with a `component` those of one worker. The chart's name is the alias that a parent chart gives it. */}}
{{- define "kafka-workers.selector" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default .root.Chart.Name | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The metadata of an object: (dict "root" $ "component" COMPONENT "name" NAME "namespace" NAMESPACE "labels" MORE "annotations" ANNOTATIONS). */}}
{{- define "kafka-workers.metadata" -}}
{{- $labels := dict
    "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
    "app.kubernetes.io/version" .root.Chart.AppVersion
    "app.kubernetes.io/managed-by" .root.Release.Service -}}
name: {{ .name | quote }}
namespace: {{ .namespace | default .root.Release.Namespace | quote }}
labels: {{- merge (include "kafka-workers.selector" . | fromYaml) (.labels | default dict) .root.Values.commonLabels $labels | toYaml | nindent 2 }}
{{- with .annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a worker's dead letters go, as a JSON list. */}}
{{- define "kafka-workers.deadLetterTopics" -}}
{{- $topics := list -}}
{{- range .worker.topics }}{{ $topics = append $topics (printf "%s.dlq" .) }}{{ end -}}
{{- with index .worker.options "dead-letter-topic" }}{{ $topics = list (include "kafka-workers.text" .) }}{{ end -}}
{{- $topics | toJson -}}
{{- end }}

{{/* Not empty where the worker ends: a producer, unless it goes on for ever. */}}
{{- define "kafka-workers.isJob" -}}
{{- if and (eq .kind "producer") (not (eq (toString .worker.options.forever) "true")) }}yes{{ end -}}
{{- end }}

{{/* A regular expression for the names of a worker's pods, and not those of a worker whose name begins with this one's. */}}
{{- define "kafka-workers.podPattern" -}}
{{ .worker.name }}-[a-z0-9]+-{{ if include "kafka-workers.isJob" . }}[0-9]+-{{ end }}[a-z0-9]{5}
{{- end }}

{{/*
How a worker reaches Kafka, as JSON: servers, protocol, ca (a Secret), client (a Secret with certificate and key),
mechanism, username, password (a Secret), oauth (a map, empty for the other mechanisms), region. With Strimzi it follows from the names that Strimzi gives.
*/}}
{{- define "kafka-workers.connection" -}}
{{- $values := .root.Values -}}
{{- if $values.strimzi.enabled -}}
{{- if or $values.kafka.tls.enabled $values.kafka.sasl.mechanism }}{{ fail "kafka.tls and kafka.sasl are for strimzi.enabled=false: with Strimzi both follow from strimzi.authentication" }}{{ end -}}
{{- $scram := eq $values.strimzi.authentication "scram-sha-512" -}}
{{- $secret := .worker.userSecret | default .worker.name -}}
{{- dict
    "servers" ($values.kafka.bootstrapServers | default (printf "%s-kafka-bootstrap.%s.svc:%v" $values.strimzi.cluster (include "kafka-workers.strimziNamespace" .root) $values.strimzi.port))
    "protocol" (ternary "sasl_ssl" "ssl" $scram)
    "ca" ($values.strimzi.caSecret | default (printf "%s-cluster-ca-cert" $values.strimzi.cluster))
    "client" (ternary "" $secret $scram)
    "mechanism" (ternary "SCRAM-SHA-512" "" $scram)
    "username" (ternary .worker.name "" $scram)
    "password" (ternary $secret "" $scram)
    "oauth" dict
    "region" "" | toJson -}}
{{- else -}}
{{- $tls := $values.kafka.tls -}}
{{- $sasl := $values.kafka.sasl -}}
{{- if and (has $sasl.mechanism (list "PLAIN" "OAUTHBEARER")) (not $tls.enabled) (not $sasl.allowPlaintext) -}}
{{- fail (printf "kafka.sasl.mechanism: %s without kafka.tls.enabled=true sends %s unencrypted; enable TLS, or accept it with kafka.sasl.allowPlaintext=true" $sasl.mechanism (ternary "the password" "the token" (eq $sasl.mechanism "PLAIN"))) -}}
{{- end -}}
{{- $protocol := ternary (ternary "sasl_ssl" "sasl_plaintext" $tls.enabled) (ternary "ssl" "plaintext" $tls.enabled) (ne $sasl.mechanism "") -}}
{{- dict
    "servers" (required "kafka.bootstrapServers is needed when strimzi.enabled is false" $values.kafka.bootstrapServers)
    "protocol" $protocol
    "ca" (ternary $tls.caSecret "" $tls.enabled)
    "client" (ternary $tls.clientSecret "" $tls.enabled)
    "mechanism" $sasl.mechanism
    "username" $sasl.username
    "password" $sasl.passwordSecret
    "oauth" (ternary $sasl.oauth dict (eq $sasl.mechanism "OAUTHBEARER"))
    "region" (ternary $sasl.awsRegion "" (eq $sasl.mechanism "AWS_MSK_IAM")) | toJson -}}
{{- end -}}
{{- end }}

{{/* Not empty where Strimzi makes the topics of the workers. */}}
{{- define "kafka-workers.createsTopics" -}}
{{- if and .Values.strimzi.enabled .Values.strimzi.topic.create }}yes{{ end -}}
{{- end }}

{{/* Where the Kafka resource is, and its topics and users with it. */}}
{{- define "kafka-workers.strimziNamespace" -}}
{{ .Values.strimzi.namespace | default .Release.Namespace }}
{{- end }}

{{/* The ports of the brokers to begin with, as JSON. */}}
{{- define "kafka-workers.ports" -}}
{{- $connection := include "kafka-workers.connection" (dict "root" . "worker" (dict "name" "")) | fromJson -}}
{{- $ports := list -}}
{{- range splitList "," $connection.servers }}{{ $ports = append $ports (regexFind "[0-9]+$" . | atoi) }}{{ end -}}
{{- $ports | toJson -}}
{{- end }}

{{/* A value as text. Helm reads every number as a float, and would write 1e+06. */}}
{{- define "kafka-workers.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{/* The librdkafka properties of a worker, its own above those of both. Whoever contradicts a promise hears it from the worker. */}}
{{- define "kafka-workers.properties" -}}
{{- range $name, $value := merge (dict) .worker.properties .root.Values.kafka.properties }}
{{- if has $name (list "bootstrap.servers" "metadata.broker.list" "security.protocol" "group.id") }}
{{- fail (printf "properties: %s is set by the chart; use the value that makes it" $name) }}
{{- else if eq $name "group.instance.id" }}
{{- fail "properties: group.instance.id would be the same in every pod, and brokers fence all members with one id but the last that joined; leave it out" }}
{{- else if regexMatch "pas+w|passphrase|pwd|secret|jaas|credential|user\\.info|auth\\.token|\\.pem$|keystore\\.key$|oauthbearer\\.config" $name }}
{{- fail (printf "properties: %s would be in a ConfigMap for everybody to read; use kafka.sasl.passwordSecret or a variable from a Secret in env" $name) }}
{{- end }}
{{ $name }}={{ include "kafka-workers.text" $value }}
{{- end }}
{{- end }}

{{- define "kafka-workers.environment" -}}
{{- $connection := include "kafka-workers.connection" . | fromJson -}}
- {name: KAFKA_BOOTSTRAP_SERVERS, value: {{ $connection.servers | quote }}}
- {name: KAFKA_SECURITY_PROTOCOL, value: {{ $connection.protocol }}}
{{- /* The lag exporter has none: it looks at every topic of a group. */}}
{{- with .worker.topics }}
- {name: KAFKA_TOPIC, value: {{ join " " . | quote }}}
{{- end }}
{{- with .worker.groupId }}
- {name: KAFKA_GROUP_ID, value: {{ . | quote }}}
{{- end }}
{{- with $connection.ca }}
- {name: KAFKA_SSL_CA_LOCATION, value: /etc/kafka-workers/ca}
{{- end }}
{{- with $connection.client }}
- {name: KAFKA_SSL_CERTIFICATE_LOCATION, value: /etc/kafka-workers/user/user.crt}
- {name: KAFKA_SSL_KEY_LOCATION, value: /etc/kafka-workers/user/user.key}
{{- end }}
{{- with $connection.mechanism }}
- {name: KAFKA_SASL_MECHANISM, value: {{ . }}}
{{- end }}
{{- if $connection.password }}
{{- with $.root.Values.kafka.secretKeys.username }}
- {name: KAFKA_SASL_USERNAME, valueFrom: {secretKeyRef: {name: {{ $connection.password | quote }}, key: {{ . | quote }}}}}
{{- else }}
- {name: KAFKA_SASL_USERNAME, value: {{ $connection.username | quote }}}
{{- end }}
- {name: KAFKA_SASL_PASSWORD_FILE, value: /etc/kafka-workers/password/password}
{{- end }}
{{- with $connection.oauth }}
- {name: KAFKA_OAUTH_TOKEN_URL, value: {{ .tokenUrl | quote }}}
{{- if $.root.Values.kafka.secretKeys.clientId }}
- {name: KAFKA_OAUTH_CLIENT_ID, valueFrom: {secretKeyRef: {name: {{ .clientSecret | quote }}, key: {{ $.root.Values.kafka.secretKeys.clientId | quote }}}}}
{{- else }}
- {name: KAFKA_OAUTH_CLIENT_ID, value: {{ .clientId | quote }}}
{{- end }}
- {name: KAFKA_OAUTH_CLIENT_SECRET_FILE, value: /etc/kafka-workers/oauth/client-secret}
{{- with .scope }}
- {name: KAFKA_OAUTH_SCOPE, value: {{ . | quote }}}
{{- end }}
{{- with .extensions }}
- {name: KAFKA_OAUTH_EXTENSIONS, value: {{ . | quote }}}
{{- end }}
{{- if .caSecret }}
- {name: KAFKA_OAUTH_CA_LOCATION, value: /etc/kafka-workers/oauth-ca}
{{- end }}
{{- end }}
{{- with $connection.region }}
- {name: KAFKA_AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- if include "kafka-workers.properties" . }}
- {name: KAFKA_PROPERTIES_FILE, value: /etc/kafka-workers/properties/kafka.properties}
{{- end }}
{{- end }}

{{/* Not empty for a worker that may use the schema registry. */}}
{{- define "kafka-workers.usesRegistry" -}}
{{- if and .root.Values.schemaRegistry.url (has .kind (list "consumer" "producer")) }}yes{{ end -}}
{{- end }}

{{/* How a worker reaches the schema registry, and the formats that it has none of its own for. */}}
{{- define "kafka-workers.registryEnvironment" -}}
{{- $registry := .root.Values.schemaRegistry -}}
{{- $options := .worker.options -}}
{{- if include "kafka-workers.usesRegistry" . }}
- {name: KAFKA_SCHEMA_REGISTRY_URL, value: {{ $registry.url | quote }}}
{{- if $registry.passwordSecret }}
{{- with $registry.secretKeys.username }}
- {name: KAFKA_SCHEMA_REGISTRY_USERNAME, valueFrom: {secretKeyRef: {name: {{ $registry.passwordSecret | quote }}, key: {{ . | quote }}}}}
{{- else }}
- {name: KAFKA_SCHEMA_REGISTRY_USERNAME, value: {{ $registry.username | quote }}}
{{- end }}
- {name: KAFKA_SCHEMA_REGISTRY_PASSWORD_FILE, value: /etc/kafka-workers/registry-password/password}
{{- end }}
{{- if $registry.caSecret }}
- {name: KAFKA_SCHEMA_REGISTRY_CA_LOCATION, value: /etc/kafka-workers/registry-ca/ca.crt}
{{- end }}
{{- $properties := list }}
{{- range $name, $value := $registry.properties }}
{{- if regexMatch "pas+w|secret|user\\.info|auth\\.token" $name }}
{{- fail (printf "schemaRegistry.properties: %s would be in the pod for everybody to read; use schemaRegistry.passwordSecret, or mount a file and name it in KAFKA_SCHEMA_REGISTRY_PROPERTIES_FILE" $name) }}
{{- end }}
{{- $properties = append $properties (printf "%s=%s" $name (include "kafka-workers.text" $value)) }}
{{- end }}
{{- with $properties }}
- {name: KAFKA_SCHEMA_REGISTRY_PROPERTY, value: {{ join " " . | quote }}}
{{- end }}
{{- end }}
{{- if ne .kind "lag-exporter" }}
{{- $keyed := or (eq .kind "consumer") (hasKey $options "source") (hasKey $options "key-separator") (hasKey $options "key-field") }}
{{- if and $registry.keyFormat $keyed (not (hasKey $options "key-format")) }}
- {name: KAFKA_KEY_FORMAT, value: {{ $registry.keyFormat }}}
{{- end }}
{{- $own := or (eq .kind "consumer") (hasKey $options "source") (hasKey $options "input") }}
{{- if and $registry.valueFormat $own (not (hasKey $options "value-format")) }}
- {name: KAFKA_VALUE_FORMAT, value: {{ $registry.valueFormat }}}
{{- end }}
{{- end }}
{{- end }}

{{/* The port of a URL: the one that it names, or that of its scheme. */}}
{{- define "kafka-workers.portOf" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end }}

{{/* The ports of what gives tokens as JSON: of the endpoint, or of AWS. */}}
{{- define "kafka-workers.tokenPorts" -}}
{{- $connection := include "kafka-workers.connection" (dict "root" . "worker" (dict "name" "")) | fromJson -}}
{{- $ports := ternary (list 443) list (eq $connection.mechanism "AWS_MSK_IAM") -}}
{{- with $connection.oauth -}}
{{- $ports = list (include "kafka-workers.portOf" .tokenUrl | atoi) -}}
{{- end -}}
{{- $ports | toJson -}}
{{- end }}

{{/* The ports of the schema registry as JSON. */}}
{{- define "kafka-workers.registryPorts" -}}
{{- $ports := list -}}
{{- range compact (splitList "," .Values.schemaRegistry.url) -}}
{{- $ports = append $ports (include "kafka-workers.portOf" . | atoi) -}}
{{- end -}}
{{- $ports | toJson -}}
{{- end }}

{{- define "kafka-workers.volumes" -}}
{{- $keys := .root.Values.kafka.secretKeys -}}
{{- $connection := include "kafka-workers.connection" . | fromJson -}}
{{- with $connection.ca }}
- name: ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    {{- with $keys.ca }}
    items: [{key: {{ . | quote }}, path: ca.crt}]
    {{- end }}
{{- end }}
{{- with $connection.client }}
- name: user
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: {{ $keys.certificate | quote }}, path: user.crt}, {key: {{ $keys.key | quote }}, path: user.key}]}
{{- end }}
{{- if $connection.password }}
- name: password
  secret: {secretName: {{ $connection.password | quote }}, defaultMode: 0440, items: [{key: {{ $keys.password | quote }}, path: password}]}
{{- end }}
{{- with $connection.oauth }}
- name: oauth
  secret: {secretName: {{ .clientSecret | quote }}, defaultMode: 0440, items: [{key: {{ $keys.clientSecret | quote }}, path: client-secret}]}
{{- with .caSecret }}
- name: oauth-ca
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if include "kafka-workers.properties" . }}
- name: properties
  configMap: {name: {{ .worker.name }}-properties}
{{- end }}
{{- if include "kafka-workers.usesRegistry" . }}
{{- $registry := .root.Values.schemaRegistry }}
{{- with $registry.passwordSecret }}
- name: registry-password
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: {{ $registry.secretKeys.password | quote }}, path: password}]}
{{- end }}
{{- with $registry.caSecret }}
- name: registry-ca
  secret: {secretName: {{ . | quote }}, defaultMode: 0440, items: [{key: {{ $registry.secretKeys.ca | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- end }}

{{- define "kafka-workers.volumeMounts" -}}
{{- $connection := include "kafka-workers.connection" . | fromJson -}}
{{- with $connection.ca }}
- {name: ca, mountPath: /etc/kafka-workers/ca, readOnly: true}
{{- end }}
{{- with $connection.client }}
- {name: user, mountPath: /etc/kafka-workers/user, readOnly: true}
{{- end }}
{{- if $connection.password }}
- {name: password, mountPath: /etc/kafka-workers/password, readOnly: true}
{{- end }}
{{- with $connection.oauth }}
- {name: oauth, mountPath: /etc/kafka-workers/oauth, readOnly: true}
{{- if .caSecret }}
- {name: oauth-ca, mountPath: /etc/kafka-workers/oauth-ca, readOnly: true}
{{- end }}
{{- end }}
{{- if include "kafka-workers.properties" . }}
- {name: properties, mountPath: /etc/kafka-workers/properties, readOnly: true}
{{- end }}
{{- if include "kafka-workers.usesRegistry" . }}
{{- if .root.Values.schemaRegistry.passwordSecret }}
- {name: registry-password, mountPath: /etc/kafka-workers/registry-password, readOnly: true}
{{- end }}
{{- if .root.Values.schemaRegistry.caSecret }}
- {name: registry-ca, mountPath: /etc/kafka-workers/registry-ca, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{/* A securityContext of a worker, without the ids that OpenShift chooses: (dict "context" . "name" "podSecurityContext"). */}}
{{- define "kafka-workers.securityContext" -}}
{{- $values := .context.root.Values -}}
{{- $security := index .context.worker .name -}}
{{- if or (eq $values.adaptSecurityContext "force") (and (eq $values.adaptSecurityContext "auto") (include "kafka-workers.openshift" .context.root)) -}}
{{- $security = omit $security "runAsUser" "runAsGroup" "fsGroup" -}}
{{- end -}}
{{- toYaml $security -}}
{{- end }}

{{/* Not empty on OpenShift, as the API says it. */}}
{{- define "kafka-workers.openshift" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}yes{{ end -}}
{{- end }}

{{- define "kafka-workers.serviceAccount" -}}
{{ .worker.serviceAccount.name | default .worker.name }}
{{- end }}

{{/* Of every pod. No variables from Services: one called kafka-metrics would set KAFKA_METRICS_PORT, which is an option of ours. */}}
{{- define "kafka-workers.podSecurity" -}}
enableServiceLinks: false
automountServiceAccountToken: {{ .worker.serviceAccount.automount | default false }}
securityContext: {{- include "kafka-workers.securityContext" (dict "context" . "name" "podSecurityContext") | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "kafka-workers.containerSecurity" -}}
{{- $image := include "kafka-workers.image" . | fromJson -}}
image: {{ $image.name | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
securityContext: {{- include "kafka-workers.securityContext" (dict "context" . "name" "securityContext") | nindent 2 }}
{{- end }}

{{- /* `options` of a consumer ask for exactly-once. */}}
{{- define "kafka-workers.isExactlyOnce" -}}
{{- if and (eq .kind "consumer") (eq (toString (index .worker.options "exactly-once")) "true") }}yes{{ end -}}
{{- end }}

{{/* Not empty where a worker exports spans: with tracing.enabled, unless its own `options` say otherwise. */}}
{{- define "kafka-workers.isTraced" -}}
{{- if has .kind (list "consumer" "producer") -}}
{{- $own := index .worker.options "tracing" -}}
{{- if eq (toString (ternary .root.Values.tracing.enabled $own (kindIs "invalid" $own))) "true" }}yes{{ end -}}
{{- end -}}
{{- end }}

{{/* The variables of OpenTelemetry of a worker as JSON, those of tracing.environment above the chart's. */}}
{{- define "kafka-workers.openTelemetry" -}}
{{- $tracing := .root.Values.tracing -}}
{{- $variables := dict
    "OTEL_SERVICE_NAME" .worker.name
    "OTEL_RESOURCE_ATTRIBUTES" (printf "k8s.namespace.name=%s,k8s.pod.name=$(POD_NAME)" .root.Release.Namespace) -}}
{{- with $tracing.endpoint }}{{ $_ := set $variables "OTEL_EXPORTER_OTLP_ENDPOINT" . }}{{ end -}}
{{- range $name, $value := $tracing.environment -}}
{{- if regexMatch "_HEADERS$" $name }}{{ fail (printf "tracing.environment: %s would be in the pod's specification for everybody to read; set it in the worker's env, from a Secret" $name) }}{{ end -}}
{{- $_ := set $variables $name (include "kafka-workers.text" $value) -}}
{{- end -}}
{{- $variables | toJson -}}
{{- end }}

{{/* The port of tracing.endpoint, as JSON: none where no worker that runs is traced, or the address is not known here. */}}
{{- define "kafka-workers.tracingPorts" -}}
{{- $ports := list -}}
{{- with .Values.tracing.endpoint -}}
{{- $port := include "kafka-workers.portOf" . | atoi -}}
{{- range include "kafka-workers.workers" $ | fromJsonArray -}}
{{- if include "kafka-workers.isTraced" (set . "root" $) }}{{ $ports = list $port }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $ports | toJson -}}
{{- end }}

{{/* All that the chart sets itself. */}}
{{- define "kafka-workers.workerEnvironment" -}}
{{- include "kafka-workers.environment" . }}
{{- include "kafka-workers.registryEnvironment" . }}
{{- if eq .kind "consumer" }}
{{- with .root.Values.kafka.rack }}
{{- if .fromZone }}
- {name: KAFKA_CLIENT_RACK, valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}}
{{- else if .name }}
- {name: KAFKA_CLIENT_RACK, value: {{ .name | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- if hasKey .worker "linger" }}
- {name: KAFKA_LINGER, value: {{ include "kafka-workers.text" .worker.linger | quote }}}
{{- end }}
{{- if hasKey .worker "shutdownTimeout" }}
- {name: KAFKA_SHUTDOWN_TIMEOUT, value: {{ include "kafka-workers.text" .worker.shutdownTimeout | quote }}}
{{- end }}
{{- if and (eq .kind "canary") (include "kafka-workers.createsTopics" .root) (not (hasKey .worker.options "create")) }}
# The chart makes its topic; the topic operator would undo other changes.
- {name: KAFKA_CREATE, value: "false"}
{{- end }}
{{- if or (include "kafka-workers.isExactlyOnce" .) (include "kafka-workers.isTraced" .) }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}
{{- if include "kafka-workers.isExactlyOnce" . }}
# A container that starts again in its pod ends the transaction that it had begun.
- {name: KAFKA_TRANSACTIONAL_ID, value: {{ printf "%s-$(POD_NAME)" .worker.groupId | quote }}}
{{- end }}
{{- if include "kafka-workers.isTraced" . }}
{{- if not (hasKey .worker.options "tracing") }}
- {name: KAFKA_TRACING, value: "true"}
{{- end }}
{{- range $name, $value := include "kafka-workers.openTelemetry" . | fromJson }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- range $name, $value := .worker.options }}
- {name: KAFKA_{{ $name | upper | replace "-" "_" }}, value: {{ include "kafka-workers.text" $value | quote }}}
{{- end }}
{{- end }}

{{/* The pod of a worker. */}}
{{- define "kafka-workers.pod" -}}
{{- range $own := include "kafka-workers.workerEnvironment" . | fromYamlArray }}
{{- range $.worker.env }}
{{- if or (eq .name $own.name) (eq .name "KAFKA_METRICS_PORT") }}{{ fail (printf "%s.env: %s is set by the chart; use the value that makes it" (ternary "pod" $.path (has . $.root.Values.pod.env)) .name) }}{{ end }}
{{- end }}
{{- end }}
metadata:
  labels: {{- merge (include "kafka-workers.selector" . | fromYaml) .worker.podLabels .root.Values.commonLabels | toYaml | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .kind }}
    {{- with include "kafka-workers.properties" . }}
    checksum/properties: {{ . | sha256sum }}
    {{- end }}
    {{- with .worker.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "kafka-workers.serviceAccount" . | quote }}
  {{- include "kafka-workers.podSecurity" . | nindent 2 }}
  # The worker's own bound comes first, so that it is never killed in the middle.
  terminationGracePeriodSeconds: {{ add (.worker.shutdownTimeout | default 0) 10 }}
  {{- with .worker.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .worker.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .worker.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .worker.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .worker.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range .worker.topologySpreadConstraints }}
    - {{- toYaml . | nindent 6 }}
      labelSelector:
        matchLabels: {{- include "kafka-workers.selector" $ | nindent 10 }}
      {{- if not (or (hasKey . "matchLabelKeys") (include "kafka-workers.isJob" $)) }}
      # The pods that an update replaces do not count, or the new ones would shun their nodes.
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  {{- end }}
  {{- if include "kafka-workers.isJob" . }}
  restartPolicy: Never
  {{- end }}
  {{- with .worker.podSpec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .worker.initContainers }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .kind }}
      {{- include "kafka-workers.containerSecurity" . | nindent 6 }}
      args: [{{ .command }}]
      env:
        {{- include "kafka-workers.workerEnvironment" . | nindent 8 }}
        {{- with .worker.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .worker.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .worker.lifecycle }}
      lifecycle: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: metrics, containerPort: 8000}
      {{- with .worker.probes }}
      startupProbe:
        httpGet: {path: /livez, port: metrics}
        {{- toYaml .startup | nindent 8 }}
      livenessProbe:
        httpGet: {path: /livez, port: metrics}
        {{- toYaml .liveness | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        {{- toYaml .readiness | nindent 8 }}
      {{- end }}
      resources: {{- toYaml .worker.resources | nindent 8 }}
      volumeMounts: {{- concat (include "kafka-workers.volumeMounts" . | fromYamlArray) .worker.volumeMounts | toYaml | nindent 8 }}
    {{- with .worker.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes: {{- concat (include "kafka-workers.volumes" . | fromYamlArray) .worker.volumes | toYaml | nindent 4 }}
{{- end }}
