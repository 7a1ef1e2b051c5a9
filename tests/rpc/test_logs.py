"""The logging bridge: what a worker logs arrives as data, and is handled by the host's loggers."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from forkwire import InputChannel, OutputChannel, run, sync
from forkwire.rpc.telling import log_records, logs, replaying
from forkwire.rpc.telling.logs import Bridge, host_level, replay

Data = dict[str, object]

PID = 4_000_000


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A test's loggers, handlers and levels are gone after it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    known = dict(root.manager.loggerDict)
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.disable(logging.NOTSET)
    root.manager.loggerDict.clear()
    root.manager.loggerDict.update(known)


class Worker:
    """A worker's side: a bridge that posts into a list."""

    def __init__(self, **options: Any) -> None:
        self.posted: list[Data] = []
        self.clock = Clock()
        self.bridge = Bridge(self.posted.append, clock=self.clock, **options)

    def logger(self, name: str = "calc") -> logging.Logger:
        logging.getLogger().handlers[:] = [self.bridge]  # pytest has added its own meanwhile
        return logging.getLogger(name)

    @property
    def last(self) -> Data:
        return self.posted[-1]


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(current=lambda: (7, "add"))
    made.bridge.install(logging.DEBUG)
    try:
        yield made
    finally:
        made.bridge.uninstall()


class Heard(logging.Handler):
    """The host's side: the records that reached a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def last(self) -> logging.LogRecord:
        return self.records[-1]


@pytest.fixture
def heard() -> Heard:
    handler = Heard()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(1)
    return handler


def sent(data: object, **options: Any) -> None:
    replay(cast("Mapping[str, object]", data), worker="calc", pid=PID, **options)


# -- in the worker ------------------------------------------------------------------------------


def test_a_record_as_data(worker: Worker) -> None:
    """Name, level, formatted message, time, place, thread, and the call that runs."""
    before = time.time()
    worker.logger().warning("%d is %s", 5, "odd")
    data = worker.last
    assert before <= cast(float, data["created"]) <= time.time()
    assert data["pathname"] == __file__
    assert data["funcName"] == "test_a_record_as_data"
    assert data["threadName"] == threading.current_thread().name
    expected = {
        "name": "calc",
        "level": logging.WARNING,
        "levelname": "WARNING",
        "message": "5 is odd",
        "call": 7,
        "method": "add",
    }
    assert {name: data[name] for name in expected} == expected


def test_outside_of_a_call() -> None:
    """There is no id and no method then."""
    worker = Worker()
    worker.bridge.handle(logging.makeLogRecord({"msg": "starting"}))
    assert "call" not in worker.last
    assert "method" not in worker.last


def test_a_traceback_travels_as_text(worker: Worker) -> None:
    """``logger.exception`` brings the whole of it, without the exception."""
    try:
        raise ValueError("here")
    except ValueError:
        worker.logger().exception("failed")
    text = cast(str, worker.last["exc_text"])
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("ValueError: here")


def test_a_stack_travels_as_text(worker: Worker) -> None:
    """``stack_info=True`` too."""
    worker.logger().info("where", stack_info=True)
    assert "test_a_stack_travels_as_text" in cast(str, worker.last["stack_info"])


def test_extra_fields_that_are_plain(worker: Worker) -> None:
    """Scalars come along; objects, containers and huge numbers stay."""
    extra: dict[str, object] = {
        "text": "t",
        "count": 3,
        "share": 0.5,
        "yes": True,
        "none": None,
        "object": object(),
        "list": [1],
        "huge": 2**64,
    }
    worker.logger().info("x", extra=extra)
    assert worker.last["extra"] == {
        "text": "t",
        "count": 3,
        "share": 0.5,
        "yes": True,
        "none": None,
    }


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("message", "arguments", "parts"),
    [
        ("%d and %d", (1,), ["'%d and %d'", "TypeError: not enough arguments"]),
        ("%s", (Unspeakable(),), ["'%s'", "RuntimeError: no text"]),
        (Unspeakable(), (), ["<Unspeakable", "RuntimeError: no text"]),
    ],
    ids=["arguments", "an argument", "the message"],
)
def test_a_message_that_cannot_be_made(
    worker: Worker, message: object, arguments: tuple[object, ...], parts: list[str]
) -> None:
    """The record is delivered all the same, and says why."""
    worker.logger().error(message, *arguments)
    assert worker.last["level"] == logging.ERROR
    for part in parts:
        assert part in cast(str, worker.last["message"])


def test_an_exception_that_cannot_be_told(worker: Worker) -> None:
    """Neither does a traceback that cannot be made lose a record."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    worker.logger().error("failed", exc_info=Odd())
    assert worker.last["message"] == "failed"
    assert "Odd" in cast(str, worker.last["exc_text"])


def test_sizes_are_bounded(worker: Worker) -> None:
    """Of a long text the beginning is kept, of a traceback the end, with a note of the rest."""
    many = {f"field{n}": "v" * 2000 for n in range(100)}
    try:
        raise ValueError("e" * 100_000 + " the end")
    except ValueError:
        worker.logger("n" * 1000).exception("m" * 100_000, extra=many)
    data = worker.last
    assert cast(str, data["message"]) == "m" * log_records.MESSAGE + "... [83616 more]"
    assert len(cast(str, data["name"])) < 300
    assert cast(str, data["exc_text"]).endswith("the end")
    assert len(cast(str, data["exc_text"])) < log_records.TRACEBACK + 30
    extra = cast("dict[str, str]", data["extra"])
    assert len(extra) == log_records.EXTRAS
    assert max(len(text) for text in extra.values()) < log_records.EXTRA + 30


def test_text_can_be_encoded(worker: Worker) -> None:
    """Half a surrogate pair, as in the name of an undecodable file, becomes an escape."""
    worker.logger().info("file \udcff and \N{SNOWMAN}", extra={"path": "\udcfe"})
    assert worker.last["message"] == "file \\udcff and \N{SNOWMAN}"
    assert worker.last["extra"] == {"path": "\\udcfe"}


def test_below_the_hosts_level_nothing_is_made() -> None:
    """Neither is its message formatted: the level came with the host's greeting."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was formatted")

    worker = Worker()
    worker.bridge.install(logging.WARNING)
    try:
        worker.logger().info("%s", Costly())
        assert worker.posted == []
        worker.logger().warning("seen")
        assert worker.last["message"] == "seen"
    finally:
        worker.bridge.uninstall()


@pytest.mark.parametrize(
    ("root", "disabled", "expected"),
    [
        (logging.INFO, logging.NOTSET, logging.INFO),
        (logging.INFO, logging.WARNING, logging.WARNING + 1),
        (logging.NOTSET, logging.NOTSET, 1),
        (logging.ERROR, logging.DEBUG, logging.ERROR),
    ],
)
def test_the_hosts_level(root: int, disabled: int, expected: int) -> None:
    """The root logger's, unless more is disabled altogether."""
    logging.getLogger().setLevel(root)
    logging.disable(disabled)
    assert host_level() == expected


def test_inherited_handlers_are_replaced_and_left_alone() -> None:
    """Every logger's, whose records go to the bridge alone; no handler is flushed or closed."""

    class Inherited(Heard):
        def flush(self) -> None:
            raise AssertionError("flushed")

        def close(self) -> None:
            raise AssertionError("closed")

    inherited = Inherited()
    logging.getLogger().addHandler(inherited)
    own = logging.getLogger("calc.own")
    own.addHandler(inherited)
    own.propagate = False
    worker = Worker()
    worker.bridge.install(logging.DEBUG)
    own.info("from a logger with a handler of its own")
    logging.getLogger("calc.other").info("from another")
    worker.bridge.uninstall()
    logging.Handler.close(inherited)
    assert inherited.records == []
    assert [data["name"] for data in worker.posted] == ["calc.own", "calc.other"]
    assert (own.handlers, own.propagate) == ([inherited], False)


def test_a_held_lock_does_not_matter() -> None:
    """A handler's lock that a thread held at the fork is never asked for."""
    handler = Heard()
    logging.getLogger().addHandler(handler)
    worker = Worker()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        handler.acquire()
        held.set()
        done.wait(20)
        handler.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    worker.bridge.install(logging.DEBUG)
    worker.logger().info("not waiting")
    worker.bridge.uninstall()
    done.set()
    thread.join()
    assert worker.last["message"] == "not waiting"


def test_logging_inside_post_is_not_posted() -> None:
    """What the way to the host logs itself would never end."""
    posted: list[Data] = []

    def post(data: Data) -> None:
        posted.append(data)
        logging.getLogger("calc.transport").info("sending")

    bridge = Bridge(post)
    bridge.install(logging.DEBUG)
    logging.getLogger("calc").info("once")
    logging.getLogger("calc").info("twice")
    bridge.uninstall()
    assert [data["message"] for data in posted] == ["once", "twice"]


def test_a_post_that_fails_is_told_on_stderr(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As logging tells of a handler's failure; who logs is not disturbed."""

    def post(data: Data) -> None:
        raise OSError("no way")

    monkeypatch.setattr(worker.bridge, "_post", post)
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    worker.logger().info("lost")
    assert "OSError: no way" in stderr.getvalue()


class Interrupted(BaseException):
    pass


def test_an_interrupted_post_leaves_nothing_behind(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception that stops a call comes out; the next record passes, in any thread."""

    def post(data: Data) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(worker.bridge, "_post", post)
        with pytest.raises(Interrupted):
            worker.logger().info("stopped")
    worker.logger().info("here")
    thread = threading.Thread(target=worker.logger().info, args=("there",))
    thread.start()
    thread.join(20)
    assert [data["message"] for data in worker.posted] == ["here", "there"]


def test_a_flood_is_bounded_and_counted(worker: Worker) -> None:
    """A burst passes, then what the rate allows; the rest is told in one record."""
    for number in range(10_000):
        worker.logger().info("%d", number)
    assert len(worker.posted) == logs.BURST
    worker.clock.now += 10 / logs.RATE + 1e-9
    for number in range(100):
        worker.logger().info("%d", number)
    told = [data for data in worker.posted if data["name"] == "forkwire.worker"]
    assert [data["message"] for data in told] == [
        f"forkwire: {10_000 - int(logs.BURST)} records dropped, which came too fast"
    ]
    assert len(worker.posted) == logs.BURST + 10 + len(told)
    assert worker.bridge.dropped == 90


def test_a_flood_followed_by_silence_is_told_by_flush(worker: Worker) -> None:
    """Once; then there is nothing to tell."""
    for number in range(int(logs.BURST) + 1):
        worker.logger().info("%d", number)
    worker.bridge.flush()
    worker.bridge.flush()
    assert worker.last["message"] == "forkwire: 1 record dropped, which came too fast"
    assert len(worker.posted) == logs.BURST + 1


def test_a_clock_that_goes_back(worker: Worker) -> None:
    """It costs no record."""
    worker.clock.now = -1e6
    worker.logger().info("passes")
    assert worker.last["message"] == "passes"


def test_many_threads_lose_nothing(worker: Worker) -> None:
    """Each record is posted, or counted once, and the count told or still to be told."""

    def flood() -> None:
        for number in range(1000):
            worker.logger().info("%d", number)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    worker.bridge.flush()
    told = [str(data["message"]) for data in worker.posted if data["name"] != "calc"]
    assert len(worker.posted) - len(told) == logs.BURST
    assert logs.BURST + sum(int(message.split()[1]) for message in told) == 8000


def test_a_process_that_the_worker_forked_speaks_on_stderr(worker: Worker) -> None:
    """The pipe to the host is not its own: it must not write there."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which share no lock here
        pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            sys.stderr = os.fdopen(write_end, "w")
            worker.logger().info("from %s", "below")
            worker.bridge.flush()
            sys.stderr.flush()
        finally:
            os._exit(len(worker.posted))
    os.close(write_end)
    with os.fdopen(read_end) as said:
        assert said.read() == "INFO:calc:from below\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_warnings_are_logged_where_that_is_asked_for() -> None:
    """Through logging's own ``py.warnings``."""
    posted: list[Data] = []
    bridge = logs.install(posted.append, logging.DEBUG, lambda: None, warnings=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)  # catch_warnings has put the function back
            warnings.warn("look out", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        bridge.uninstall()
    assert posted[-1]["name"] == "py.warnings"
    assert "UserWarning: look out" in cast(str, posted[-1]["message"])


def test_filters_of_the_bridge(worker: Worker) -> None:
    """As of any handler."""
    worker.bridge.addFilter(lambda record: record.levelno > logging.INFO)
    worker.logger().info("no")
    worker.logger().warning("yes")
    assert [data["message"] for data in worker.posted] == ["yes"]


# -- in the host --------------------------------------------------------------------------------


def test_there_and_back(worker: Worker) -> None:
    """What arrives is the record that was made, with the worker's pid and name."""
    made: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        made.append(record)
        return True

    worker.bridge.addFilter(keep)
    try:
        raise LookupError("x")
    except LookupError:
        worker.logger("calc.deep").exception("%s%%", 50, extra={"user": "ada"}, stack_info=True)
    worker.bridge.uninstall()
    (there,) = made
    host = Heard()
    logging.getLogger("calc").addHandler(host)
    logging.getLogger("calc").setLevel(logging.INFO)
    sent(worker.last)
    (here,) = host.records
    for field in (
        *("name", "levelno", "levelname", "created", "msecs", "pathname", "filename", "module"),
        *("lineno", "funcName", "thread", "threadName", "stack_info", "user"),
    ):
        assert getattr(here, field) == getattr(there, field), field
    assert here.relativeCreated == pytest.approx(there.relativeCreated, abs=0.1)
    assert here.getMessage() == "50%"
    assert here.exc_info is None
    fields = vars(here)
    assert fields["forkwire_worker"] == "calc"
    assert fields["forkwire_pid"] == PID
    assert (fields["forkwire_call"], fields["forkwire_method"]) == (7, "add")
    line = logging.Formatter("%(process)d %(processName)s %(message)s").format(here)
    assert line.startswith(f"{PID} calc 50%\nTraceback (most recent call last):\n")
    assert "LookupError: x\nStack (most recent call last):" in line


def test_the_hosts_levels_decide(heard: Heard) -> None:
    """The logger of the record's name is asked, as for a record made here."""
    logging.getLogger("calc.quiet").setLevel(logging.ERROR)
    sent({"name": "calc.quiet.part", "level": logging.WARNING, "message": "no"})
    sent({"name": "calc.quiet.part", "level": logging.ERROR, "message": "yes"})
    assert [record.getMessage() for record in heard.records] == ["yes"]


@pytest.mark.parametrize("name", ["", "root", None, 5])
def test_the_root_logger(heard: Heard, name: object) -> None:
    """A record without a usable name is the root's."""
    sent({"name": name, "level": logging.INFO, "message": "m"})
    assert heard.last.name == "root"
    assert "root" not in logging.getLogger().manager.loggerDict


def test_a_percent_sign_is_only_text(heard: Heard) -> None:
    """The message is not formatted a second time."""
    sent({"name": "calc", "level": 20, "message": "%s %d %(x)s"})
    assert heard.last.getMessage() == "%s %d %(x)s"


def test_names_of_levels(heard: Heard) -> None:
    """The host's own come first; a worker names those that have none here."""
    sent({"level": 30, "levelname": "CALM", "message": ""})
    assert heard.last.levelname == "WARNING"
    sent({"level": 37, "levelname": "NOTICE", "message": ""})
    assert heard.last.levelname == "NOTICE"
    sent({"level": 37, "message": ""})
    assert heard.last.levelname == "Level 37"


@pytest.mark.parametrize(
    ("level", "expected"),
    [(10**9, 100), (2**200, logging.INFO), ("ERROR", logging.INFO), (True, logging.INFO)],
)
def test_levels_are_bounded(heard: Heard, level: object, expected: int) -> None:
    """What is no level counts as INFO."""
    sent({"level": level, "message": "m"})
    assert heard.last.levelno == expected


@pytest.mark.parametrize(
    "created", [None, "now", math.nan, math.inf, -math.inf, -1, 1e300, 2**500, [], True + 2**40]
)
def test_times_are_bounded(heard: Heard, created: object) -> None:
    """A time that cannot be is now; formatting it works."""
    before = time.time()
    sent({"level": 20, "message": "m", "created": created})
    assert before <= heard.last.created <= time.time()
    assert logging.Formatter("%(asctime)s %(relativeCreated)d").format(heard.last)


MALFORMED: list[object] = [
    None,
    [],
    {},
    5,
    "text",
    {1: 2, None: []},
    {name: [] for name in ("name", "level", "levelname", "message", "created", "pathname")},
    {name: object() for name in ("thread", "threadName", "exc_text", "stack_info", "extra")},
    {"extra": {1: 2, "": 3, "a b": 4, "msg": 5, "args": 6, "getMessage": 7, "__class__": 8}},
    {"extra": {"name": "n", "exc_info": True, "forkwire_pid": 1, "message": 2, "asctime": 3}},
    {"lineno": -1, "thread": -5, "call": -1, "level": -10, "created": -1.0},
    {"lineno": 2**70, "thread": 2**70, "call": 2**70, "pathname": "\0/\0"},
    {"name": "." * 100},
    {"name": "a" * 10_000},
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: str(data)[:30])
@pytest.mark.parametrize("trusted", [True, False])
def test_malformed_records_never_raise(heard: Heard, data: object, trusted: bool) -> None:
    """They are records all the same, which every format can show."""
    sent(data, trusted=trusted)
    fields = (
        "asctime name levelname message pathname filename module lineno funcName "
        "process processName thread threadName created msecs relativeCreated forkwire_call"
    )
    text = logging.Formatter(" ".join(f"%({field})s" for field in fields.split()))
    assert str(PID) in text.format(heard.last)
    assert vars(heard.last)["forkwire_pid"] == PID


def test_text_is_made_safe(heard: Heard) -> None:
    """Escape sequences and the like are shown, not obeyed; all is bounded."""
    evil = "\x1b[2J\r\u202e"
    sent(
        {
            "name": f"calc{evil}",
            "level": 20,
            "message": evil + "m" * 10**6,
            "funcName": evil,
            "pathname": evil,
            "threadName": evil,
            "method": evil,
            "exc_text": evil + "t" * 10**6,
            "stack_info": evil,
            "extra": {"field": evil + "x" * 10**6},
        }
    )
    everything = "".join(str(value) for value in vars(heard.last).values())
    assert not {"\x1b", "\r", "\u202e"} & set(everything)
    assert "\\x1b[2J" in heard.last.getMessage()
    assert len(everything) < 150_000


def test_lines_of_an_untrusted_worker(heard: Heard) -> None:
    """None of them can pass for a record of its own; a trusted one's message may have several."""
    data = {"level": 20, "message": "a\nb", "exc_text": "T\nE", "extra": {"field": "c\nd"}}
    sent(data, trusted=False)
    shown = logging.Formatter("%(message)s %(field)s").format(heard.last)
    assert shown == "a\\nb c\\nd\n  | T\n  | E"
    sent(data)
    assert logging.Formatter("%(message)s").format(heard.last) == "a\nb\nT\nE"


def test_new_names_are_limited(heard: Heard) -> None:
    """Logging keeps every logger for ever: past a number, a common parent takes the records."""
    before = len(logging.getLogger().manager.loggerDict)
    names: set[str] = set()
    for number in range(2000):
        sent({"name": f"hostile{number}", "level": 20, "message": "m"}, names=names)
    assert len(names) == replaying.NEW_NAMES
    made = len(logging.getLogger().manager.loggerDict) - before
    assert made <= replaying.NEW_NAMES + 2
    assert len(heard.records) == 2000
    assert heard.last.name == "hostile1999"
    logging.getLogger("known").setLevel(logging.ERROR)
    sent({"name": "known", "level": 20, "message": "m"}, names=names)
    assert len(heard.records) == 2000


def test_a_deep_name_makes_no_loggers(heard: Heard) -> None:
    """Each of its parts would be kept too."""
    sent({"name": ".".join("abcdefghijklmnopqrstuvwxyz"), "level": 20, "message": "m"})
    assert "a.b" not in logging.getLogger().manager.loggerDict
    assert heard.last.name.startswith("a.b.c.")


def test_a_handler_that_raises_does_not_reach_the_link(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the program's own; its traceback is printed, as logging does."""

    def emit(record: logging.LogRecord) -> None:
        raise ValueError("mine")

    monkeypatch.setattr(heard, "emit", emit)
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    sent({"level": 20, "message": "m"})
    assert "ValueError: mine" in stderr.getvalue()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    sent({"level": 20, "message": "m"})
    assert quiet.getvalue() == ""


def test_the_programs_record_factory_is_used(heard: Heard) -> None:
    """What it adds to every record is there for the formatters."""
    factory = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.service = "mine"
        return record

    logging.setLogRecordFactory(make)
    try:
        sent({"level": 20, "message": "m"})
    finally:
        logging.setLogRecordFactory(factory)
    assert vars(heard.last)["service"] == "mine"


def test_the_queue_handler_takes_it(heard: Heard) -> None:
    """A replayed record is as good as any other for the handlers of the library."""
    memory = logging.handlers.MemoryHandler(10, target=heard)
    logging.getLogger().handlers[:] = [memory]
    sent({"level": 20, "message": "m", "exc_text": "T"})
    memory.close()
    assert heard.last.getMessage() == "m"


# -- in a real worker ---------------------------------------------------------------------------


def logs_in_a_worker(inp: InputChannel, out: OutputChannel, level: int) -> None:
    def post(data: Data) -> None:
        sync.write_message(out, json.dumps(data).encode())

    bridge = logs.install(post, level, lambda: (1, "work"))
    logging.getLogger("calc").debug("not made")
    logging.getLogger("calc").info("made in %s", "the worker")
    bridge.flush()


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::forkwire.ForkThreadsWarning")  # anyio's runner has one
async def test_a_forked_worker(tmp_path: Path) -> None:
    """Its record is handled once, by the host's handlers, whose inherited copies stay silent."""
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(process)d %(name)s %(levelname)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.INFO)
    async with await run(logs_in_a_worker, host_level()) as worker:
        async for message in worker.input_channel:
            replay(json.loads(message), worker="calc", pid=worker.pid)
    handler.close()
    assert worker.returncode == 0
    assert path.read_text() == f"{worker.pid} calc INFO made in the worker\n"
