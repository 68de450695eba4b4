"""Faults of sensors and their drivers, over DDS: named within a second or so, counted, outlived.

One node serves the whole module; each test breaks streams and leaves it well.
"""

from __future__ import annotations

import array

import numpy as np
import pytest
from accounts import Fault, check_accounts
from harness import RELIABLE, NodeProcess, Robot
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Bool, Float32, Float32MultiArray, Int16MultiArray

from mmfuse_ros import config as declarations
from mmfuse_ros.samples import NS_PER_S, Modality

EVERYTHING = set(Modality)
OK, WARN, ERROR = 0, 1, 2
HUGE = "rejected_too_large"


@pytest.fixture(scope="module")
def node(domain, parameters, tmp_path_factory):
    # Half the load of the default: this machine may be small, and the tests wait for conditions.
    lighter = {"emg.rate_hz": 200.0, "audio.period_s": 0.25}
    given = {**parameters, **lighter, "anomaly.method": "cosine"}
    running = NodeProcess(given, log=tmp_path_factory.mktemp("node") / "log")
    yield running
    code, _ = running.stop()
    assert code == 0, running.text()


@pytest.fixture(scope="module")
def _robot(node):
    made = Robot(emg_hz=200)
    assert made.run(90, until=lambda: made.mask() == EVERYTHING), node.text()
    yield made
    made.close()


@pytest.fixture
def robot(_robot, node):
    """The robot, all streams well; after the test the node is alive and its accounts are right."""
    _robot.without = set()
    assert _robot.run(30, until=lambda: well(_robot)), (_robot.watch.diagnostics, node.text())
    yield _robot
    assert node.process.poll() is None, node.text()
    check_accounts(_robot.watch.diagnostics)


def well(robot):
    inputs = [robot.row(f"input {m}")[0] for m in Modality]
    return inputs == [OK] * 5 and robot.mask() == EVERYTHING and robot.row("node")[0] == OK


def receiving(robot, modality):
    return lambda: robot.row(f"input {modality}")[0] == OK and modality in robot.mask()


def says(robot, modality, text):
    return lambda: text in robot.row(f"input {modality}")[2]


def count(robot, modality, key):
    return int(robot.row(f"input {modality}")[1].get(key, 0))


def with_sender(robot, modality, send):
    """Replace a stream by `send`, called every 10 ms with a running number, while `run`s go on."""
    robot.without = {modality}
    begun = robot._ticks

    def also(condition):
        def until():
            send(robot._ticks - begun)
            return condition()

        return until

    return also


def test_publishers_go_and_come_back(robot):
    kinds = {m: (p.msg_type, p.topic) for m, p in robot.out.items()}
    for lost in (
        {Modality.CAMERA_2, Modality.PRESSURE},
        {Modality.AUDIO, Modality.EMG},
        {Modality.CAMERA_1},
    ):
        names = " and ".join(sorted(lost))
        fault = Fault(robot, f"publishers of {names} go", "destroyed, then made anew")
        robot.without = lost
        for modality in lost:
            robot.node.destroy_publisher(robot.out[modality])
        before = len(robot.watch.embeddings)
        fault.detected(lambda lost=lost: all(says(robot, m, "silent")() for m in lost))
        assert all(robot.row(f"input {m}")[0] == ERROR for m in lost)
        if Modality.CAMERA_1 not in lost:  # the trigger: without it there is no window
            assert robot.run(20, until=lambda lost=lost: robot.mask() == EVERYTHING - lost)
            assert len(robot.watch.embeddings) > before
        for modality in lost:
            kind, topic = kinds[modality]
            robot.out[modality] = robot.node.create_publisher(kind, topic, RELIABLE)
        robot.without = set()
        fault.mended(lambda lost=lost: all(receiving(robot, m)() for m in lost))
        fault.write("ERROR, `silent for ... s`; embeddings go on without them", "nothing to lose")


@pytest.mark.parametrize(
    ("reason", "name", "offset_s"),
    [
        ("zero_stamp", "stamps of zero", None),
        ("future_stamp", "stamps an hour ahead", 3600.0),
        ("out_of_order", "every other stamp 0.4 s back", -0.4),
    ],
)
def test_a_camera_with_wrong_stamps(robot, reason, name, offset_s):
    camera, sent = Modality.CAMERA_2, []
    before = count(robot, camera, f"dropped_{reason}")

    def send(number):
        if number % 5:
            return
        now_ns = robot.node.get_clock().now().nanoseconds
        wrong = reason != "out_of_order" or number % 10 == 0
        stamp_ns = now_ns + round((offset_s or 0) * NS_PER_S) if wrong else now_ns
        robot.send_frame(camera, 0 if offset_s is None else stamp_ns)
        sent.append(wrong)

    fault = Fault(robot, f"camera with {name}", "header stamps")
    also = with_sender(robot, camera, send)
    fault.detected(also(says(robot, camera, reason)))
    assert robot.row(f"input {camera}")[0] == WARN
    robot.without = set()
    fault.mended(receiving(robot, camera))
    dropped = count(robot, camera, f"dropped_{reason}") - before
    # The first of those that go back may follow a frame that is not newer than it.
    assert sum(sent) - 1 <= dropped <= sum(sent) + 1
    fault.write("WARN with the remedy; the other streams' embeddings go on", f"{dropped} frames")


def test_a_frozen_camera(robot):
    camera = Modality.CAMERA_2
    still = robot.picture(5)
    fault = Fault(robot, "frozen camera", "one picture, new stamps")
    also = with_sender(
        robot, camera, lambda n: n % 5 == 0 and robot.send_frame(camera, message=still)
    )
    fault.detected(also(says(robot, camera, "the picture has not changed")))
    assert robot.row(f"input {camera}")[0] == WARN
    robot.without = set()
    fault.mended(receiving(robot, camera))
    fault.write("WARN, `the picture has not changed for ... s while frames arrive`", "none lost")


def test_a_camera_that_stutters(robot):
    camera = Modality.CAMERA_2
    held = []

    def send(number):
        if number % 5 == 0:
            held.append(robot.node.get_clock().now().nanoseconds)
        if number % 50 == 49:
            while held:
                robot.send_frame(camera, held.pop(0))

    def missed():
        return _missing(robot, camera)

    before = missed()
    fault = Fault(robot, "camera that stutters", "0.5 s of frames at once, true stamps")
    fault.detected(with_sender(robot, camera, send)(lambda: missed() > before))
    robot.without = set()
    fault.mended(receiving(robot, camera))
    fault.write("windows without it, its mask bit is 0", f"{missed() - before} windows")


def _missing(robot, modality):
    sync = robot.row("sync")[1]
    return sum(int(n) for key, n in sync.items() if key.startswith(f"missing_{modality}"))


def test_a_camera_that_changes_its_picture_midway(robot):
    camera = Modality.CAMERA_2
    small = Image(encoding="mono8", height=30, width=40, step=40)
    kinds = [
        lambda n: robot.picture(n, size=(96, 128)),
        lambda n: robot.picture(n, encoding="bgr8"),
        lambda n: _filled(small, n),
    ]
    dropped = count(robot, camera, "dropped_unused")
    for make in kinds:

        def send(number, make=make):
            if number % 5 == 0:
                robot.send_frame(camera, message=make(number))

        also = with_sender(robot, camera, send)
        seen = len(robot.watch.embeddings)
        assert robot.run(
            20,
            until=also(
                lambda s=seen: camera in robot.mask() and len(robot.watch.embeddings) > s + 5
            ),
        )
    assert robot.row(f"input {camera}")[0] == OK
    assert count(robot, camera, "rejected") == 0
    assert count(robot, camera, "dropped_unused") - dropped < 40  # thinned by load, not refused


def _filled(message, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, message.height * message.step, dtype=np.uint8)
    message.data = array.array("B", pixels.tobytes())
    return message


def _sound(robot, samples, amplitude=3000.0):
    hum = amplitude * np.sin(2 * np.pi * 220 * np.arange(samples) / 16000)
    data = (hum + robot._rng.normal(0, 200, samples)).clip(-32768, 32767).astype(np.int16)
    robot.send(Modality.AUDIO, Int16MultiArray(data=array.array("h", data.tobytes())))


def test_sound_that_clips(robot):
    fault = Fault(robot, "clipped sound", "a hum of 20 times full scale")
    also = with_sender(robot, Modality.AUDIO, lambda n: _sound(robot, 160, 650_000.0))
    fault.detected(also(says(robot, Modality.AUDIO, "clipped")))
    assert float(robot.row("input audio")[1]["clipped_share"]) > 0.01
    robot.without = set()
    fault.mended(receiving(robot, Modality.AUDIO))
    fault.write("WARN, share of the samples at full scale", "nothing lost")


def test_sound_at_another_rate(robot):
    for rate_hz, text in ((8000, "expected 16000"), (48000, "audio.rate_hz")):
        fault = Fault(
            robot, f"microphone goes from 16 to {rate_hz // 1000} kHz", "chunks of 10 ms"
        )
        rejected = count(robot, Modality.AUDIO, "rejected")
        also = with_sender(robot, Modality.AUDIO, lambda n, k=rate_hz // 100: _sound(robot, k))
        fault.detected(also(says(robot, Modality.AUDIO, text)))
        robot.without = set()
        fault.mended(receiving(robot, Modality.AUDIO))
        rejected = count(robot, Modality.AUDIO, "rejected") - rejected
        fault.write("WARN with both rates; audio is left out of windows", f"{rejected} messages")


def test_sound_with_underruns_and_other_chunks(robot):
    def uneven(number):
        """160 samples every 10 ms in chunks of 37, 160 or 800 samples."""
        backlog[0] += 160
        size = (37, 160, 800)[number // 100 % 3]
        while backlog[0] >= size:
            _sound(robot, size)
            backlog[0] -= size

    backlog = [0]
    seen = len(robot.watch.embeddings)
    also = with_sender(robot, Modality.AUDIO, uneven)
    assert robot.run(
        30, until=also(lambda: len(robot.watch.embeddings) > seen + 40 and backlog[0] < 800)
    )
    assert robot.run(10, until=also(lambda: Modality.AUDIO in robot.mask()))

    missing = _missing(robot, Modality.AUDIO)
    fault = Fault(robot, "audio underruns", "200 ms of every 400 ms are missing")
    also = with_sender(robot, Modality.AUDIO, lambda n: n % 40 < 20 and _sound(robot, 160))
    fault.detected(also(lambda: _missing(robot, Modality.AUDIO) > missing))
    robot.without = set()
    fault.mended(receiving(robot, Modality.AUDIO))
    lost = _missing(robot, Modality.AUDIO) - missing
    fault.write(
        "no window takes a signal with a gap for a whole one", f"{lost} windows without it"
    )


def test_1_khz_with_gaps_bursts_and_repeats(robot):
    rng = np.random.default_rng(3)
    press = Modality.PRESSURE

    def send(values):
        for value in values:
            robot.send(press, Float32(data=float(value)))

    missing = _missing(robot, press)
    fault = Fault(robot, "1 kHz stream with gaps", "150 ms of every 300 ms are missing")
    also = with_sender(robot, press, lambda n: n % 30 < 15 and send(rng.normal(2, 0.1, 10)))
    fault.detected(also(lambda: _missing(robot, press) > missing))
    robot.without = set()
    fault.mended(receiving(robot, press))
    lost = _missing(robot, press) - missing
    fault.write("windows without it, `missing_pressure_gap`", f"{lost} windows without it")

    fault = Fault(robot, "1 kHz stream in bursts", "100 messages every 100 ms")
    rejected = count(robot, press, "rejected")
    also = with_sender(robot, press, lambda n: n % 10 == 0 and send(rng.normal(2, 0.1, 100)))
    seen = len(robot.watch.embeddings)
    fault.detected(also(lambda: press in robot.mask() and len(robot.watch.embeddings) > seen + 20))
    robot.without = set()
    fault.mended(receiving(robot, press))
    rejected = count(robot, press, "rejected") - rejected
    fault.write("stamps are evened out, windows hold it", f"{rejected} messages that ran ahead")

    def held():
        return robot.row("input pressure")[1]["held_share"]

    fault = Fault(robot, "200 Hz held to 1 kHz", "each value five times")
    also = with_sender(robot, press, lambda n: send(np.repeat(rng.normal(2, 0.1, 2), 5)))
    fault.detected(also(says(robot, press, "repeat the one before")))
    # The share climbs to 0.8 as samples from before leave its second.
    assert robot.run(10, until=also(lambda: 0.7 < float(held()) < 0.9)), held()
    robot.without = set()
    fault.mended(receiving(robot, press))
    fault.write("WARN, share of the samples that repeat", "nothing lost")


def test_messages_that_are_no_data(robot):
    """NaN, infinite, empty, cut off, of 100 MB, and bytes that no message is."""
    floats = lambda *values: Float32MultiArray(data=array.array("f", values))  # noqa: E731
    cut_off = robot.picture()
    cut_off.data = cut_off.data[:-1]
    cases = {
        Modality.PRESSURE: [Float32(data=float("nan")), Float32(data=float("inf"))],
        Modality.EMG: [floats(), floats(*[float("-inf")] * 8)],
        Modality.AUDIO: [Int16MultiArray()],
        Modality.CAMERA_2: [cut_off, Image(encoding="rgb8")],
    }
    before = {m: count(robot, m, "rejected") for m in cases}
    fault = Fault(robot, "NaN, Inf, empty and truncated messages", "published in every stream")
    for modality, messages in cases.items():
        for message in messages:
            robot.send(modality, message)

    def rejected():
        return {m: count(robot, m, "rejected") - before[m] for m in cases}

    fault.detected(lambda: all(n >= len(cases[m]) for m, n in rejected().items()))
    assert rejected() == {m: len(messages) for m, messages in cases.items()}
    fault.mended(lambda: well(robot))
    fault.write("WARN with the cause", f"{sum(rejected().values())} messages, each counted")

    memory = float(robot.row("node")[1]["resident_mb"])
    fault = Fault(robot, "messages of 50 and 100 MB", "Float32MultiArray as EMG, five times")
    # What the transport loses never arrives; what arrives is refused, and the rest goes on.
    data = {mb: Float32MultiArray(data=array.array("f", bytes(mb * 10**6))) for mb in (50, 100)}
    payload = {mb: serialize_message(message) for mb, message in data.items()}
    robot.send(Modality.EMG, payload[100])
    for number in range(1, 5):
        for _ in range(10):
            robot.send(Modality.EMG, payload[50])
            if robot.run(3, until=lambda n=number: count(robot, Modality.EMG, HUGE) >= n):
                break
    assert count(robot, Modality.EMG, HUGE) >= 4
    fault.mended(lambda: well(robot))
    # Each one that a reader's history kept would be 50 MB and more.
    grown = float(robot.row("node")[1]["resident_mb"]) - memory
    assert grown < 120, grown
    fault.write("WARN; embeddings go on, memory stays", "refused as too large and counted")

    fault = Fault(robot, "bytes that are no message", "a serialised image, cut off")
    before = lost_and_named(robot)
    robot.out[Modality.CAMERA_2].publish(serialize_message(robot.picture())[:60])
    fault.detected(lambda: lost_and_named(robot) != before)
    if robot.row("node")[0] == ERROR:  # this middleware hands the failure on
        robot.watch.call("reset")
    fault.mended(lambda: well(robot))
    fault.write("dropped by the middleware", "1, `lost_by_transport`")


def lost_and_named(robot):
    return count(robot, Modality.CAMERA_2, "lost_by_transport"), robot.row("node")[0]


def test_a_subscriber_that_never_reads(robot):
    import rclpy

    lazy = rclpy.create_node("lazy", context=robot.context)
    for kind, topic in (
        (PointCloud2, "mmfuse/embedding_stamped"),
        (Float32MultiArray, "mmfuse/embedding"),
        (Bool, "mmfuse/anomaly_flag"),
    ):
        lazy.create_subscription(kind, topic, lambda m: None, RELIABLE)
    fault = Fault(robot, "subscriber that never reads", "reliable, never spun")
    seen = len(robot.watch.embeddings)
    fault.detected(lambda: len(robot.watch.embeddings) > seen + 60, within_s=60)
    lazy.destroy_node()
    fault.mended(lambda: well(robot))
    fault.write("unaffected", "nothing lost for the others")


def _set(robot, name, value):
    """Set a parameter of the node; return why it was refused, or ""."""
    kinds = {bool: "bool", int: "integer", float: "double", str: "string"}
    if isinstance(value, tuple):
        wire = ParameterValue(
            type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=list(value) or [""]
        )
    else:
        kind = kinds[type(value)]
        number = getattr(ParameterType, f"PARAMETER_{kind.upper()}")
        wire = ParameterValue(type=number, **{f"{kind}_value": value})
    request = SetParameters.Request(parameters=[Parameter(name=name, value=wire)])
    (result,) = robot.watch.ask(SetParameters, "mmfuse/set_parameters", request, 20).results
    return "" if result.successful else result.reason


def _get(robot, name):
    request = GetParameters.Request(names=[name])
    (value,) = robot.watch.ask(GetParameters, "mmfuse/get_parameters", request, 20).values
    return value


def test_parameters_are_changed_under_load(robot):
    live = [p for p in declarations.parameters() if p.live]
    assert len(live) >= 12
    for p in live:
        if isinstance(p.default, tuple):
            other = p.default[:1]
        elif isinstance(p.default, float):
            other = min(p.default * 1.5 + 0.01, p.high)
        else:
            other = p.default + 1
        for value in (other, p.default):
            robot.run(0.03)
            assert _set(robot, p.name, value) == "", p.name
        if p.low is not None:
            reason = _set(robot, p.name, type(p.default)(p.low - 1))
            assert "must be at least" in reason, (p.name, reason)
    assert "must be set before the node is configured" in _set(robot, "audio.window_s", 1.0)
    assert "anomaly.debounce_k must be at most" in _set(robot, "anomaly.debounce_k", 900)
    assert _get(robot, "anomaly.debounce_k").integer_value == 2
    assert "must be of type float" in _set(robot, "sync.tolerance_s", "wide")
    assert "sync.required must hold only" in _set(robot, "sync.required", ("nose",))
    assert robot.run(30, until=lambda: well(robot))


def test_resets_and_baselines_under_load(robot):
    for _ in range(5):
        for service in ("reset", "set_baseline", "clear_baseline"):
            robot.watch.call(service)
            robot.run(0.05)
    assert robot.run(30, until=lambda: well(robot))
    assert int(robot.row("sync")[1]["epoch"]) >= 5
