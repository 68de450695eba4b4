"""The SROS2 policy is the real node's graph: nothing more, nothing less."""

from __future__ import annotations

import importlib.util
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "config" / "sros2" / "mmfuse.policy.xml"
ENCLAVE = "/mmfuse"
# Not there before ROS 2 Iron.
RECENT = {"/mmfuse/get_type_description"}
DOMAIN = "171"


def policy_names():
    """Return the names that each kind of permission holds, expanded as sros2 expands them."""
    profile = ElementTree.parse(POLICY).getroot().find("enclaves/enclave/profiles/profile")
    namespace = profile.get("ns").rstrip("/")
    names = {"publish": [], "subscribe": [], "reply": [], "request": []}
    for group in profile:
        for kind, verdict in group.attrib.items():
            assert verdict == "ALLOW"
            for entry in group:
                text = entry.text
                if text.startswith("~"):
                    text = f"{namespace}/{profile.get('node')}{text[1:]}"
                names[kind].append(text if text.startswith("/") else f"{namespace}/{text}")
    return names


def graph_names(observer, name, namespace):
    kinds = {
        "publish": observer.get_publisher_names_and_types_by_node,
        "subscribe": observer.get_subscriber_names_and_types_by_node,
        "reply": observer.get_service_names_and_types_by_node,
        "request": observer.get_client_names_and_types_by_node,
    }
    return {kind: {topic for topic, _ in query(name, namespace)} for kind, query in kinds.items()}


def test_policy_names_each_thing_once_and_without_wildcards():
    root = ElementTree.parse(POLICY).getroot()
    assert root.get("version") == "0.2.0"
    assert [e.get("path") for e in root.iter("enclave")] == [ENCLAVE]
    for kind, names in policy_names().items():
        assert len(names) == len(set(names)), kind
        assert not [name for name in names if set(name) & set("*?[~")], kind


def test_policy_is_the_graph_of_the_running_node(tmp_path, monkeypatch):
    from harness import NodeProcess
    from rclpy.context import Context

    monkeypatch.setenv("ROS_DOMAIN_ID", DOMAIN)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = {kind: set(names) for kind, names in policy_names().items()}
    if importlib.util.find_spec("rclpy.type_description_service") is None:
        expected["reply"] -= RECENT
    # Simulated time, because that adds the subscription to /clock.
    parameters = {
        "model.weights": "random",
        "model.preset": "lightweight",
        "model.precision": "fp32",
        "use_sim_time": True,
    }
    context = Context()
    rclpy.init(context=context)
    observer = rclpy.create_node("observer", context=context)
    node = NodeProcess(parameters, log=tmp_path / "node.log")
    found = {}
    try:
        end = time.monotonic() + 90
        while found != expected and time.monotonic() < end and node.process.poll() is None:
            time.sleep(0.2)
            if ("mmfuse", "/") in observer.get_node_names_and_namespaces():
                found = graph_names(observer, "mmfuse", "/")
        if found == expected:
            time.sleep(1.0)  # what comes late belongs in the policy too
            found = graph_names(observer, "mmfuse", "/")
    finally:
        node.stop()
        observer.destroy_node()
        rclpy.shutdown(context=context)
    assert found == expected, node.text()


def test_sros2_makes_permissions_of_it(tmp_path, monkeypatch):
    """Follow docs/security.md, where sros2 is installed: keystore, enclave, permission."""
    pytest.importorskip("sros2", reason="sros2 is not on PyPI; this runs where ROS has it")
    from sros2 import keystore

    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    store = tmp_path / "keystore"
    keystore.create_keystore(store)
    keystore.create_enclave(store, ENCLAVE)
    keystore.create_permission(store, ENCLAVE, POLICY)
    root = ElementTree.parse(store / "enclaves" / "mmfuse" / "permissions.xml").getroot()
    (grant,) = root.iter("grant")
    assert grant.findtext("subject_name") == f"CN={ENCLAVE}"
    assert grant.findtext("default") == "DENY"
    assert {e.text for e in grant.iter("id")} == {"7"}
    allowed = {
        kind: {e.text for e in grant.iterfind(f"allow_rule/{kind}/topics/topic")}
        for kind in ("publish", "subscribe")
    }
    names = policy_names()
    for kind in ("publish", "subscribe"):
        topics = {f"rt{name}" for name in names[kind]}
        services = {
            f"{'rr' if kind == 'publish' else 'rq'}{name}"
            f"{'Reply' if kind == 'publish' else 'Request'}"
            for name in names["reply"]
        }
        assert allowed[kind] - {"ros_discovery_info"} == topics | services
