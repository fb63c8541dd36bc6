"""The queue: tables of cases, and properties that hold for every input."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kajiya.messages import fields, sentences
from kajiya.types import Amount, Capacity, GiB, GpuAmount, Resources
from kajiya_hub.queue import Decision, Holding, QueueLimits, decide
from kajiya_hub.store.rows import QueuedJob

NOW = 100_000.0


def machine(cpu=4.0, memory=16, gpus=(), servers_cpu=0.0, servers_memory=0):
    return Capacity(
        cpu=Amount(total=cpu, free=cpu - servers_cpu),
        memory=Amount(total=memory * GiB, free=(memory - servers_memory) * GiB),
        gpus=[GpuAmount(kind=k, total=n, free=f) for k, n, f in gpus],
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def ask(cpu=1.0, memory=1, gpus=0, kind=None):
    return Resources(cpu=cpu, memory=memory * GiB, gpus=gpus, gpu_kind=kind)


def job(name, owner="a", r=None, priority=0, at=NOW - 10, profile="small", not_before=0.0):
    return QueuedJob(name, owner, profile, r or ask(), priority, at, not_before)


def hold(owner="a", r=None, profile="small"):
    return Holding(owner, profile, r or ask())


def codes(d: Decision):
    return {k: (position, reason.code) for k, (position, reason) in d.waits.items()}


CASES = {
    "nothing waits": ([], [], machine(), QueueLimits(), [], {}),
    "all fit, the older first": (
        [job("b", at=2), job("a", at=1)],
        [],
        machine(),
        QueueLimits(),
        ["a", "b"],
        {},
    ),
    "one owner's priority goes before age": (
        [job("old", at=1), job("urgent", at=2, priority=5)],
        [hold()],
        machine(cpu=2),
        QueueLimits(),
        ["urgent"],
        {"old": (1, "waiting.capacity")},
    ),
    "the owner who has less goes first": (
        [job("mine", at=1), job("yours", "b", at=2)],
        [hold("a")],
        machine(cpu=2),
        QueueLimits(),
        ["yours"],
        {"mine": (1, "waiting.capacity")},
    ),
    "one submit beside a thousand waits for one only": (
        [*(job(f"m{i:04}", at=i) for i in range(1000)), job("single", "b", at=5000)],
        [hold("a")],
        machine(cpu=1),
        QueueLimits(),
        [],
        {
            "single": (1, "waiting.capacity"),
            **{f"m{i:04}": (i + 2, "waiting.behind") for i in range(1000)},
        },
    ),
    "a smaller one passes": (
        [job("big", r=ask(4), at=NOW - 5), job("little", at=NOW - 4)],
        [hold("b")],
        machine(),
        QueueLimits(),
        ["little"],
        {"big": (1, "waiting.capacity")},
    ),
    "but not for ever": (
        [job("big", r=ask(4), at=NOW - 600), job("little", at=NOW - 4)],
        [hold("b")],
        machine(),
        QueueLimits(),
        [],
        {"big": (1, "waiting.capacity"), "little": (2, "waiting.reserved")},
    ),
    "beside a kept place what it leaves may be used": (
        [job("gpus", r=ask(1, 1, 2), at=NOW - 700), job("little", r=ask(2), at=NOW - 4), job("gpu", r=ask(1, 1, 1))],
        [hold("b", ask(1, 1, 1))],
        machine(gpus=[("X", 2, 2)]),
        QueueLimits(),
        ["little"],
        {"gpus": (1, "waiting.capacity"), "gpu": (2, "waiting.reserved")},
    ),
    "the owner's limit": (
        [job("a1", at=1), job("a2", at=2), job("b1", "b", at=3)],
        [hold("a")],
        machine(),
        QueueLimits(jobs_active=2),
        ["b1", "a1"],
        {"a2": (1, "waiting.owner_limit")},
    ),
    "the profile's limit counts servers, and only that profile waits": (
        [job("a1", at=1), job("a2", at=2, profile="large")],
        [],
        machine(),
        QueueLimits(profiles={"small": 1}, in_use={("a", "small"): 1}),
        ["a2"],
        {"a1": (1, "waiting.profile_limit")},
    ),
    "servers hold what it needs, and others go on": (
        [job("big", r=ask(1, 12), at=1), job("little", at=2)],
        [],
        machine(servers_memory=8),
        QueueLimits(),
        ["little"],
        {"big": (1, "waiting.machine_full_by_servers")},
    ),
    "larger than the machine became": (
        [job("big", r=ask(8)), job("kind", r=ask(gpus=1, kind="Y"))],
        [],
        machine(gpus=[("X", 2, 2)]),
        QueueLimits(),
        [],
        {"big": (1, "waiting.too_large"), "kind": (2, "waiting.too_large")},
    ),
    "GPUs by kind": (
        [job("x", r=ask(gpus=2, kind="X"), at=1), job("any", r=ask(gpus=1), at=2), job("y", r=ask(gpus=1, kind="Y"))],
        [],
        machine(gpus=[("X", 2, 2), ("Y", 1, 1)]),
        QueueLimits(),
        ["x", "any"],
        {"y": (1, "waiting.capacity")},
    ),
    "a fraction of a CPU": (
        [job(f"f{i}", r=ask(0.1), at=i) for i in range(11)],
        [],
        machine(cpu=1),
        QueueLimits(),
        [f"f{i}" for i in range(10)],
        {"f10": (1, "waiting.capacity")},
    ),
    "a clock that was set back does not put a retry off for ever": (
        [job("again", not_before=NOW + 86400)],
        [],
        machine(),
        QueueLimits(),
        ["again"],
        {},
    ),
    "a retry waits for its time, at the end": (
        [job("again", not_before=NOW + 30, at=1), job("new", r=ask(8), at=2)],
        [],
        machine(),
        QueueLimits(),
        [],
        {"new": (1, "waiting.too_large"), "again": (2, "waiting.retry")},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_case(case):
    waiting, active, capacity, limits, start, waits = CASES[case]
    shuffled = list(waiting)
    random.Random(case).shuffle(shuffled)
    decision = decide(shuffled, active, capacity, limits, NOW)
    assert decision.start == start
    assert codes(decision) == waits


def test_a_kept_place_stays_kept_though_another_owner_has_less():
    big = job("big", r=ask(4), at=NOW - 700)
    first = decide([big], [hold("b"), hold("b")], machine(), QueueLimits(), NOW)
    assert first.reserved == "big"
    older = job("older", "c", at=1)
    assert decide([big, older], [hold("b")], machine(), QueueLimits(), NOW).start == ["older"]
    second = decide([big, older], [hold("b")], machine(), QueueLimits(), NOW, reserved=first.reserved)
    assert second.start == [] and second.reserved == "big"
    third = decide([big, older], [], machine(), QueueLimits(), NOW, reserved=second.reserved)
    assert third.start == ["big"] and third.reserved == "older"


def test_says_when_time_alone_changes_the_decision():
    waiting = [job("again", not_before=NOW + 30), job("big", r=ask(4), at=NOW - 100)]
    assert decide(waiting, [hold("b")], machine(), QueueLimits(), NOW).again_at == NOW + 30
    assert decide(waiting[1:], [hold("b")], machine(), QueueLimits(), NOW).again_at == NOW + 500


def test_looking_less_deep_starts_the_same_first():
    waiting = [job(f"j{i:04}", f"u{i % 7}", ask(1 + i % 2), at=i) for i in range(500)]
    full = decide(waiting, [], machine(cpu=8, memory=64), QueueLimits(), NOW)
    quick = decide(waiting, [], machine(cpu=8, memory=64), QueueLimits(), NOW, depth=20)
    assert quick.start == full.start
    assert all(full.waits[k] == v for k, v in quick.waits.items()) and len(quick.waits) < 30


def test_every_reason_has_its_sentence_and_parameters():
    for waiting, active, capacity, limits, _, _ in CASES.values():
        for _, reason in decide(waiting, active, capacity, limits, NOW).waits.values():
            for language in ("en", "ja"):
                assert fields(sentences(language)[reason.code]) <= reason.params.keys()


def test_reasons_name_nobody():
    waiting = [job(f"secret-job-{i}", f"secret-owner-{i}", ask(1 + i % 5), at=i) for i in range(50)]
    decision = decide(waiting, [hold("secret-owner-x")], machine(), QueueLimits(jobs_active=1), NOW)
    assert len(decision.waits) > 40
    assert not any("secret" in str(reason.params) for _, reason in decision.waits.values())


# --- properties
resources = st.builds(
    ask,
    cpu=st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0, 9.0]),
    memory=st.integers(1, 20),
    gpus=st.integers(0, 3),
    kind=st.sampled_from([None, "X", "Y", "Z"]),
)
owners = st.sampled_from("abc")
profiles = st.sampled_from(["small", "large"])
waitings = st.lists(
    st.builds(
        QueuedJob,
        st.uuids().map(str),
        owners,
        profiles,
        resources,
        st.integers(-2, 2),
        st.floats(NOW - 2000, NOW),
        st.sampled_from([0.0, NOW - 5, NOW + 5]),
    ),
    max_size=30,
    unique_by=lambda j: j.id,
)
actives = st.lists(st.builds(Holding, owners, profiles, resources), max_size=4)
machines = st.builds(
    machine,
    cpu=st.sampled_from([1.0, 4.0, 8.0]),
    memory=st.sampled_from([4, 32]),
    gpus=st.sampled_from([(), (("X", 2, 1),), (("X", 2, 2), ("Y", 1, 1))]),
    servers_cpu=st.sampled_from([0.0, 0.5]),
    servers_memory=st.integers(0, 3),
)
limits_of = st.builds(
    QueueLimits,
    jobs_active=st.sampled_from([None, 1, 3]),
    profiles=st.sampled_from([{}, {"small": 1}, {"small": 2, "large": 1}]),
    in_use=st.sampled_from([{}, {("a", "small"): 1}]),
)


def used(held, kind=None):
    return sum(r.gpus for r in held if kind is None or r.gpu_kind == kind)


@settings(max_examples=300, deadline=None)
@given(waitings, actives, machines, limits_of)
def test_no_decision_exceeds_what_there_is_or_a_limit(waiting, active, capacity, limits):
    decision = decide(waiting, active, capacity, limits, NOW)
    by_id = {j.id: j for j in waiting}
    started = [by_id[i] for i in decision.start]
    assert len(set(decision.start)) == len(decision.start)
    # Each starts or waits with a place of its own.
    assert set(decision.waits) | set(decision.start) == set(by_id) and not set(decision.waits) & set(decision.start)
    assert sorted(p for p, _ in decision.waits.values()) == list(range(1, len(decision.waits) + 1))
    assert all(j.not_before <= NOW for j in started)
    if started:
        asked = [j.resources for j in started] + [h.resources for h in active]
        assert sum(round(r.cpu * 1000) for r in asked) <= round(capacity.cpu.free * 1000)
        assert sum(r.memory for r in asked) <= capacity.memory.free
        if any(j.resources.gpus for j in started):
            known = [r for r in asked if r.gpu_kind in {None, *(g.kind for g in capacity.gpus)}]
            assert used(known) <= sum(g.free for g in capacity.gpus)
    for j in started:
        if j.resources.gpu_kind and j.resources.gpus:
            free = next(g.free for g in capacity.gpus if g.kind == j.resources.gpu_kind)
            held = [x.resources for x in started] + [h.resources for h in active]
            assert used(held, j.resources.gpu_kind) <= free
        mine = [x for x in [*started, *active] if x.owner == j.owner]
        assert limits.jobs_active is None or len(mine) <= limits.jobs_active
        limit = limits.profiles.get(j.profile)
        same = sum(x.profile == j.profile for x in mine) + limits.in_use.get((j.owner, j.profile), 0)
        assert limit is None or same <= limit


@settings(max_examples=100, deadline=None)
@given(waitings, actives, machines, limits_of, st.randoms())
def test_the_order_of_the_input_does_not_matter(waiting, active, capacity, limits, rng):
    first = decide(waiting, active, capacity, limits, NOW)
    shuffled = list(waiting)
    rng.shuffle(shuffled)
    assert decide(shuffled, active, capacity, limits, NOW) == first


@settings(max_examples=100, deadline=None)
@given(waitings, machines)
def test_an_idle_machine_leaves_nobody_waiting_who_fits(waiting, capacity):
    decision = decide(waiting, [], capacity, QueueLimits(), NOW)
    if not decision.start:
        assert {r.code for _, r in decision.waits.values()} <= {
            "waiting.too_large",
            "waiting.machine_full_by_servers",
            "waiting.retry",
        }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_nobody_starves(seed, big_cpu):
    """A big job among a stream of small ones from others, some older than it, starts within a bounded time."""
    rng = random.Random(seed)
    now, running, waiting, reserved = NOW, [], [job("big", "big", ask(big_cpu), at=NOW)], None
    waiting += [job(f"older{i}", f"o{i % 3}", at=NOW - 50) for i in range(20)]
    for step in range(400):
        now += 10
        running = [(ends, h) for ends, h in running if ends > now]
        waiting += [job(f"s{step}-{i}", rng.choice("bcd"), at=now) for i in range(rng.randrange(4))]
        decision = decide(waiting, [h for _, h in running], machine(), QueueLimits(), now, reserved)
        reserved = decision.reserved
        if "big" in decision.start:
            return
        for i in decision.start:
            started = next(j for j in waiting if j.id == i)
            running.append((now + rng.randrange(10, 200), Holding(started.owner, "small", started.resources)))
        waiting = [j for j in waiting if j.id not in decision.start]
    raise AssertionError(f"not started after {now - NOW} s")
