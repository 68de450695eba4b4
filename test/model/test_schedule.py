"""Which encoder runs for which window; costs and intervals are given, no clock is read."""

import numpy as np
import pytest

from mmfuse_ros.model.schedule import Schedule
from mmfuse_ros.samples import NS_PER_S, Frame, Modality, Signal, Window

C1, C2, AUDIO, EMG = Modality.CAMERA_1, Modality.CAMERA_2, Modality.AUDIO, Modality.EMG
ALL = (C1, C2, AUDIO, EMG)


def window(at_s, streams=ALL, epoch=0, offset_s=0.0):
    stamp_ns = round(at_s * NS_PER_S)
    return Window(
        stamp_ns,
        "",
        {m: Frame(stamp_ns, "", lambda: None) for m in streams if m.is_camera},
        {m: Signal(np.zeros((1, 4), np.float32), 1.0) for m in streams if not m.is_camera},
        {m: round(offset_s * NS_PER_S) for m in streams},
        epoch=epoch,
    )


def drive(schedule, at, costs=(0.0, 0.0, 0.0), dropped=0, failed=(), **options):
    """Plan and finish one window; its vectors carry the time they were made at."""
    w = window(at, **options)
    plan = schedule.plan(w, dropped)
    made = [m for m in w.present if m not in plan.held and m not in failed]
    vectors = {m.value: np.full(2, at, np.float32) for m in made}
    spent = dict(zip(("vision", "audio"), costs, strict=False))
    spent = {n: c for n, c in spent.items() if n in plan.run} | {"rest": costs[2]}
    reasons = {m: "corrupt" for m in failed if m in w.present}
    schedule.done(w, plan, vectors, reasons, spent)
    return plan


def run_machine(schedule, seconds, costs, rate_hz=30.0):
    """Let a machine of these costs serve a trigger; the newest window waits, others drop."""
    interval, now, dropped, plans = 1.0 / rate_hz, 0.0, 0, []
    done_to = -1
    while now < seconds:
        newest = int(now / interval)
        if newest == done_to:
            newest += 1
            now = newest * interval
        dropped += newest - done_to - 1
        done_to = newest
        plan = drive(schedule, newest * interval + 1.0, costs, dropped)
        now += costs[2] + sum(costs[i] for i, n in enumerate(("vision", "audio")) if n in plan.run)
        plans.append((newest * interval, plan))
    return plans


def rate(plans, since_s, name=None):
    chosen = [at for at, plan in plans if at >= since_s and (name is None or name in plan.run)]
    return len(chosen) / (plans[-1][0] - since_s)


def test_period_zero_runs_every_window():
    schedule = Schedule(0.0, 0.0)
    for k in range(50):
        plan = drive(schedule, k / 30, (5.0, 5.0, 5.0), dropped=99 * k)
        assert plan.run == {"vision", "audio"}
        assert not plan.held


def test_a_fixed_period_holds_and_tells_the_age():
    schedule = Schedule(0.0, 0.5)
    runs = []
    for k in range(31):
        at = 10 + k / 10
        plan = drive(schedule, at, offset_s=-0.01)
        assert "vision" in plan.run
        assert plan.age_ns[C1] == pytest.approx(0.01e9)
        if "audio" in plan.run:
            runs.append(k)
            assert plan.age_ns[AUDIO] == pytest.approx(0.01e9)
        else:
            since = 10 + runs[-1] / 10
            assert plan.held[AUDIO][0] == np.float32(since)
            assert plan.age_ns[AUDIO] == pytest.approx((at - since + 0.01) * 1e9)
    assert runs == [0, 5, 10, 15, 20, 25, 30]


def test_auto_is_off_while_the_machine_keeps_up():
    plans = run_machine(Schedule(), 5.0, (0.010, 0.012, 0.004))
    assert all(plan.run == {"vision", "audio"} for _, plan in plans)
    assert rate(plans, 1.0) == pytest.approx(30, rel=0.02)


@pytest.mark.parametrize(
    "costs",
    [(0.031, 0.072, 0.004), (0.08, 0.20, 0.006), (0.12, 0.30, 0.010)],
    ids=["bf16", "fp32", "fp32 beside other load"],
)
def test_auto_serves_ten_hertz(costs):
    plans = run_machine(Schedule(), 30.0, costs)
    assert rate(plans, 3.0) >= 10
    assert 0.8 <= rate(plans, 3.0, "audio") <= 2.1
    assert rate(plans, 3.0, "vision") >= 1.5
    # Once it is decoupled, no window pays for both.
    assert not [at for at, plan in plans if at > 3.0 and len(plan.run) == 2]


def test_auto_goes_back_when_the_machine_has_room():
    schedule = Schedule()
    run_machine(schedule, 5.0, (0.08, 0.2, 0.005))
    assert schedule.periods_s["audio"] >= 0.5
    schedule.plan(window(100.0, epoch=1))
    plans = run_machine(schedule, 20.0, (0.006, 0.007, 0.002))
    assert all(plan.run == {"vision", "audio"} for at, plan in plans if at > 15.0)


def test_a_held_vector_is_bounded():
    """Even when the other encoder is always more overdue."""
    schedule = Schedule(0.1, 0.5)
    for k in range(200):
        plan = drive(schedule, 10 + k * 0.033, (0.3, 0.6, 0.01), dropped=5 * k)
        assert plan.age_ns[AUDIO] <= 2 * 0.5e9
        assert plan.age_ns[C1] <= 2 * 0.1e9


def test_no_vector_crosses_a_clock_epoch():
    schedule = Schedule(10.0, 10.0)
    drive(schedule, 5.0)
    assert drive(schedule, 5.1).held.keys() == {C1, C2, AUDIO}
    plan = drive(schedule, 5.2, epoch=1)
    assert plan.run == {"vision", "audio"}
    assert not plan.held


def test_stamps_that_go_back_run_everything():
    schedule = Schedule(10.0, 10.0)
    drive(schedule, 5.0)
    assert drive(schedule, 4.9).run == {"vision", "audio"}


def test_a_missing_stream_is_missing_and_its_vector_forgotten():
    schedule = Schedule(10.0, 10.0)
    drive(schedule, 5.0)
    plan = drive(schedule, 5.1, streams=(C1, C2, EMG))
    assert AUDIO not in plan.held
    assert AUDIO not in plan.age_ns
    assert "audio" not in plan.run
    assert "audio" in drive(schedule, 5.2).run


def test_a_camera_that_comes_back_makes_vision_run():
    schedule = Schedule(10.0, 10.0)
    drive(schedule, 5.0, streams=(C1, AUDIO))
    plan = drive(schedule, 5.1)
    assert "vision" in plan.run
    plan = drive(schedule, 5.2, streams=(C2, AUDIO))
    assert plan.held.keys() == {C2, AUDIO}


def test_a_corrupt_camera_is_named_until_the_next_look():
    schedule = Schedule(10.0, 10.0)
    drive(schedule, 5.0, failed=(C2,))
    plan = drive(schedule, 5.1)
    assert plan.failed == {C2: "corrupt"}
    assert plan.held.keys() == {C1, AUDIO}
    assert not plan.run
