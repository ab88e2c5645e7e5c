/* The peer in C: what librdkafka itself takes to produce and to consume, as its own rdkafka_performance does it.
 *
 *   peer produce TOPIC COUNT SIZE name=value...   each message with a delivery report that is counted
 *   peer consume TOPIC COUNT 0    name=value...   in batches from the consumer's queue, offsets stored
 *
 * The prototypes are librdkafka's public ones, so that no header of another version is needed.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;
typedef struct rd_kafka_topic_partition_list_s rd_kafka_topic_partition_list_t;
typedef struct {
    int err;
    rd_kafka_topic_t *rkt;
    int32_t partition;
    void *payload;
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *private;
} rd_kafka_message_t;

enum { PRODUCER, CONSUMER };
enum { COPY = 2, QUEUE_FULL = -184 };

rd_kafka_conf_t *rd_kafka_conf_new(void);
int rd_kafka_conf_set(rd_kafka_conf_t *, const char *, const char *, char *, size_t);
void rd_kafka_conf_set_dr_msg_cb(rd_kafka_conf_t *, void (*)(rd_kafka_t *, const rd_kafka_message_t *, void *));
rd_kafka_t *rd_kafka_new(int, rd_kafka_conf_t *, char *, size_t);
rd_kafka_topic_t *rd_kafka_topic_new(rd_kafka_t *, const char *, void *);
int rd_kafka_produce(rd_kafka_topic_t *, int32_t, int, void *, size_t, const void *, size_t, void *);
int rd_kafka_last_error(void);
int rd_kafka_poll(rd_kafka_t *, int);
int rd_kafka_flush(rd_kafka_t *, int);
int rd_kafka_poll_set_consumer(rd_kafka_t *);
rd_kafka_topic_partition_list_t *rd_kafka_topic_partition_list_new(int);
void *rd_kafka_topic_partition_list_add(rd_kafka_topic_partition_list_t *, const char *, int32_t);
int rd_kafka_subscribe(rd_kafka_t *, const rd_kafka_topic_partition_list_t *);
rd_kafka_queue_t *rd_kafka_queue_get_consumer(rd_kafka_t *);
ssize_t rd_kafka_consume_batch_queue(rd_kafka_queue_t *, int, rd_kafka_message_t **, size_t);
int rd_kafka_offset_store(rd_kafka_topic_t *, int32_t, int64_t);
void rd_kafka_message_destroy(rd_kafka_message_t *);
int rd_kafka_consumer_close(rd_kafka_t *);

enum { BATCH = 1000, PARTITIONS = 3 };

static long acknowledged;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void on_delivery(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque) {
    (void)client, (void)opaque;
    acknowledged += message->err == 0;
}

static rd_kafka_t *make(int kind, int count, char **properties) {
    char error[512];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    for (int at = 0; at < count; at++) {
        char *value = strchr(properties[at], '=');
        if (value == NULL) fail("expected name=value");
        *value++ = '\0';
        if (rd_kafka_conf_set(conf, properties[at], value, error, sizeof error)) fail(error);
    }
    if (kind == PRODUCER) rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_t *client = rd_kafka_new(kind, conf, error, sizeof error);
    if (client == NULL) fail(error);
    return client;
}

static void produce(rd_kafka_t *client, const char *name, long count, size_t size) {
    rd_kafka_topic_t *topic = rd_kafka_topic_new(client, name, NULL);
    char *value = memset(malloc(size), 'x', size);
    for (long sent = 0; sent < count;) {
        if (rd_kafka_produce(topic, sent / BATCH % PARTITIONS, COPY, value, size, NULL, 0, NULL) == 0) {
            if (++sent % BATCH == 0) rd_kafka_poll(client, 0);
        } else if (rd_kafka_last_error() == QUEUE_FULL) {
            rd_kafka_poll(client, 50);
        } else {
            fail("a message was refused");
        }
    }
    rd_kafka_flush(client, 60000);
    if (acknowledged != count) fail("not all were acknowledged");
}

static void consume(rd_kafka_t *client, const char *name, long count) {
    rd_kafka_message_t *messages[BATCH];
    rd_kafka_poll_set_consumer(client);
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, name, -1);
    if (rd_kafka_subscribe(client, topics)) fail("not subscribed");
    rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(client);
    for (long seen = 0; seen < count;) {
        size_t wanted = count - seen < BATCH ? count - seen : BATCH;
        ssize_t came = rd_kafka_consume_batch_queue(queue, 200, messages, wanted);
        for (ssize_t at = 0; at < came; at++) {
            rd_kafka_message_t *message = messages[at];
            if (message->err) fail("an error instead of a message");
            /* The last of a run of one partition stands for all of it. */
            if (at + 1 == came || messages[at + 1]->partition != message->partition)
                rd_kafka_offset_store(message->rkt, message->partition, message->offset);
            if (at > 0) rd_kafka_message_destroy(messages[at - 1]);
        }
        if (came > 0) rd_kafka_message_destroy(messages[came - 1]);
        seen += came;
    }
    rd_kafka_consumer_close(client);
}

int main(int count, char **words) {
    if (count < 5) fail("peer produce|consume TOPIC COUNT SIZE name=value...");
    int consumes = strcmp(words[1], "consume") == 0;
    rd_kafka_t *client = make(consumes ? CONSUMER : PRODUCER, count - 5, words + 5);
    if (consumes)
        consume(client, words[2], atol(words[3]));
    else
        produce(client, words[2], atol(words[3]), (size_t)atol(words[4]));
    return 0;
}
