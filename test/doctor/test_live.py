"""The doctor as a process, against live publishers on real DDS that are wrong each in its way."""

from __future__ import annotations

import array
import json
import subprocess
import sys
import time

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from rclpy.context import Context  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray  # noqa: E402

from mmfuse_ros.cli.checks import loopback  # noqa: E402
from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN  # noqa: E402
from mmfuse_ros.cli.processes import PROFILE_VARIABLES, fastdds_profile, ros_environment  # noqa: E402
from mmfuse_ros.ros.embedding import to_time  # noqa: E402

DOMAIN = "177"


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", DOMAIN)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    for name in PROFILE_VARIABLES:
        monkeypatch.setenv(name, str(fastdds_profile()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = Context()
    rclpy.init(context=context)
    made = rclpy.create_node("driver", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


def publisher(node, kind, topic, reliability=ReliabilityPolicy.BEST_EFFORT):
    return node.create_publisher(kind, topic, QoSProfile(depth=50, reliability=reliability))


def doctor(send, *options):
    """Run `mmfuse doctor` while `send` is called 20 times a second; return levels by check."""
    command = [sys.executable, "-m", "mmfuse_ros.cli.main", "doctor", "--json", "--no-probe"]
    process = subprocess.Popen(
        [*command, "-p", "model.weights:=random", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 90:
        send()
        time.sleep(0.05)
    out, errors = process.communicate(timeout=10)
    assert process.returncode in (0, 1), errors
    report = json.loads(out)
    assert report["ok"] == (process.returncode == 0)
    found = {}
    for f in report["findings"]:
        found.setdefault(f["check"], []).append((f["level"], f["found"], f["remedy"]))
    return found


def picture(node, stamp_ns, encoding="rgb8"):
    message = Image(encoding=encoding, height=4, width=4, step=12)
    message.data = array.array("B", bytes(48))
    message.header.stamp = to_time(stamp_ns)
    return message


def test_each_stream_is_judged(node):
    """A stamp ahead, no stamp, a wrong type, none at all, and a wrong rate."""
    camera_1 = publisher(node, Image, "camera_1/image")
    camera_2 = publisher(node, Image, "camera_2/image")
    audio = publisher(node, Float32MultiArray, "audio")
    other = publisher(node, Float32, "gripper/force")
    emg = publisher(node, Float32MultiArray, "emg")
    row = array.array("f", [0.0] * 8)

    def send():
        now_ns = node.get_clock().now().nanoseconds
        camera_1.publish(picture(node, now_ns + 30 * 10**9))
        camera_2.publish(picture(node, 0))
        audio.publish(Float32MultiArray(data=row))
        other.publish(Float32(data=1.0))
        emg.publish(Float32MultiArray(data=row))

    found = doctor(send, "--wait", "8")
    ahead = [f for f in found["topic camera_1"] if "ahead" in f[1]]
    assert [level for level, *_ in ahead] == [FAIL]
    assert "stamps are -" in ahead[0][1]
    zero = [f for f in found["topic camera_2"] if "stamp of zero" in f[1]]
    assert [level for level, *_ in zero] == [FAIL]
    assert "camera_2.stamps to arrival" in zero[0][2]
    ((level, text, remedy),) = found["topic audio"]
    assert level == FAIL
    assert "/audio must carry std_msgs/msg/Int16MultiArray, driver publishes" in text
    assert "audio.type to std_msgs/msg/Float32MultiArray" in remedy
    ((level, text, _),) = found["topic pressure"]
    assert level == WARN
    assert "/pressure (std_msgs/msg/Float32) has no publisher within 8 s" in text
    assert "of this type there are /gripper/force" in text
    rate = [f for f in found["topic emg"] if "emg.rate_hz is 1000" in f[1]]
    assert [level for level, *_ in rate] == [WARN]
    assert found["topic emg"][0][0] == OK


def test_namespace_remap_override_and_content(node, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(
        "/**:\n"
        "  ros__parameters:\n"
        "    model.weights: random\n"
        "    camera_2.enabled: false\n"
        "    audio.enabled: false\n"
        "    emg.channels: 4\n"
        "    qos_overrides:\n"
        "      /arm/pressure:\n"
        "        subscription:\n"
        "          reliability: reliable\n"
    )
    front = publisher(node, Image, "/front/image_raw")
    pressure = publisher(node, Float32, "/arm/pressure")
    emg = publisher(node, Float32MultiArray, "/arm/emg")
    twin = publisher(node, Float32MultiArray, "/arm/emg")

    def send():
        front.publish(picture(node, node.get_clock().now().nanoseconds, encoding="fancy"))
        pressure.publish(Float32(data=1.0))
        for out in (emg, twin):
            out.publish(Float32MultiArray(data=array.array("f", [0.0] * 8)))

    options = ("--params-file", str(params), "--namespace", "arm", "--wait", "6")
    found = doctor(send, *options, "--topic", "camera_1=/front/image_raw")
    assert found["parameters"][0][:2] == (OK, str(params))
    assert not {"topic camera_2", "topic audio"} & set(found)
    assert found["topic camera_1"][0][0] == OK
    encoding = [f for f in found["topic camera_1"] if "fancy" in f[1]]
    assert [level for level, *_ in encoding] == [FAIL]
    refused = [f for f in found["topic pressure"] if f[0] == FAIL]
    assert len(refused) == 1
    assert "driver offers best_effort" in refused[0][1]
    assert "the node asks for reliable" in refused[0][1]
    assert "qos_overrides./arm/pressure.subscription" in refused[0][2]
    assert any("has 2 publishers" in f[1] for f in found["topic emg"])
    assert any(level == FAIL and "emg.channels" in text for level, text, _ in found["topic emg"])


def test_a_sound_stream_is_ok(node):
    """Int16 audio at its rate: 50 chunks of 320 samples a second, in catch-up bursts."""
    audio = publisher(node, Int16MultiArray, "audio", ReliabilityPolicy.RELIABLE)
    chunk = Int16MultiArray(data=array.array("h", [0] * 320))
    begun, sent = time.monotonic(), 0

    def send():
        nonlocal sent
        while sent < (time.monotonic() - begun) * 50:
            audio.publish(chunk)
            sent += 1

    off = [w for m in ("camera_2", "pressure", "emg") for w in ("-p", f"{m}.enabled:=false")]
    found = doctor(send, *off, "--wait", "5")
    assert [level for level, *_ in found["topic audio"]] == [OK], found["topic audio"]
    assert "messages/s" in found["topic audio"][0][1]


def test_loopback_counts_what_arrives(node):
    (finding,) = loopback.loopback(ros_environment())
    received, _, rest = finding.found.partition(" of ")
    assert rest.startswith("60 images of 1280 x 720 at 30 Hz arrived"), finding
    assert 1 <= int(received) <= 60
    assert (finding.level == OK) == (int(received) == 60)


def test_loopback_names_a_process_that_cannot_start(node):
    env = {**ros_environment(), "RMW_IMPLEMENTATION": "rmw_of_nobody"}
    (finding,) = loopback.loopback(env)
    assert finding.level == FAIL
    assert "rmw_of_nobody" in finding.found
