"""`verify`: reads a topic to its end, and accounts for the stamped messages in it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from workers.accounting.accounts import StreamSent, read_accounts
from workers.accounting.verify import UNDECIDED, as_table
from workers.cli.commands.verify import VerifyOptions
from workers.cli.context import Context, show, terminal_columns
from workers.config import CONSUMER_DEFAULTS, Precedence, Setting, read_text
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.reader import read_topic
from workers.lifecycle import Shutdown, Stopped


def verify(options: VerifyOptions, context: Context, shutdown: Shutdown) -> None:
    """Verifies a topic; raises WorkerError with the code for loss when something acknowledged is not there."""
    group = Setting("group.id", "kafka-workers-verify", Precedence.DEFAULT, "default: nothing is committed to it")
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    try:
        with shutdown.at_once():
            accounts = _accounts(options)
    except Stopped:
        raise WorkerError("stopped before the account was read; nothing is verified") from None
    observations = read_topic(config, options.topic, shutdown, options.connection.look_timeout)
    reports = observations.report(accounts, options.runs)
    unseen = sorted(set(options.runs).difference(report.run for report in reports))
    if unseen or not reports:
        wanted = f"run {', '.join(unseen)}" if unseen else "any run"
        raise ConfigError(
            f"no stamped message of {wanted} in {options.topic}, so nothing is verified; check --topic"
            f"{' and --run' if unseen else ''}; `produce --stamp` makes your own messages countable"
        )
    if options.as_json:
        for report in reports:
            show(json.dumps(asdict(report)))
    else:
        show(as_table(reports, observations, terminal_columns()))
    lost = sum(report.lost for report in reports)
    if lost:
        raise WorkerError(f"{lost} messages are lost: they should be in {options.topic} and are not", ExitCode.LOSS)
    undecided = sum(report.undecided for report in reports)
    if undecided:
        raise WorkerError(f"it is unknown whether {undecided} missing messages are lost: {UNDECIDED}")


def _accounts(options: VerifyOptions) -> dict[bytes, StreamSent] | None:
    if options.account is None:
        return None
    if options.account == "-":
        if sys.stdin is None:
            raise ConfigError("--account -: standard input is closed; connect the output of produce to it")
        return read_accounts(sys.stdin.read(), "standard input", options.topic)
    return read_accounts(read_text(Path(options.account)), options.account, options.topic)
