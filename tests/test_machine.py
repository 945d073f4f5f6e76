"""What a machine is, and MLX's limits while it answers."""

import mlx.core as mx
import pytest

from mlx_corematching.machine import Machine, memory_limits


def test_this_machine_has_figures():
    machine = Machine.this()
    assert machine.chip
    assert machine.backend in ("metal", "cuda", "cpu")
    assert machine.memory_bytes >= machine.usable_bytes > 1e8
    assert machine.mlx.count(".") >= 2


class Limits:
    """MLX's limits on a device that recommends a working set of 1000 bytes."""

    def __init__(self, monkeypatch, active):
        self.cache, self.wired, self.log = 77, 5, []
        monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1000})
        monkeypatch.setattr(mx, "get_active_memory", lambda: active)
        monkeypatch.setattr(mx, "synchronize", lambda *_: self.log.append("synchronize"))
        monkeypatch.setattr(mx, "set_cache_limit", lambda limit: self._set("cache", limit))
        monkeypatch.setattr(mx, "set_wired_limit", lambda limit: self._set("wired", limit))

    def _set(self, name, limit):
        old = getattr(self, name)
        setattr(self, name, limit)
        self.log.append(name)
        return old


@pytest.mark.parametrize(("active", "cache"), [(600, 200), (0, 500), (1200, 0)])
def test_limits_are_the_devices_own(monkeypatch, active, cache):
    limits = Limits(monkeypatch, active)
    with memory_limits():
        assert (limits.cache, limits.wired) == (cache, 1000)
    assert (limits.cache, limits.wired) == (77, 5)


def test_limits_are_put_back_after_an_error_and_only_once_all_work_is_done(monkeypatch):
    limits = Limits(monkeypatch, 100)

    def fail():
        limits.log.clear()
        raise KeyError

    with pytest.raises(KeyError), memory_limits():
        fail()
    assert (limits.cache, limits.wired) == (77, 5)
    assert limits.log[0] == "synchronize"


def test_answers_that_overlap_share_the_limits(monkeypatch):
    limits = Limits(monkeypatch, 600)
    first, second = memory_limits(), memory_limits()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (limits.cache, limits.wired) == (200, 1000)
    second.__exit__(None, None, None)
    assert (limits.cache, limits.wired) == (77, 5)


def test_nothing_is_changed_where_the_device_recommends_nothing(monkeypatch):
    def refuse(_):
        raise AssertionError("a limit was changed")

    monkeypatch.setattr(mx, "device_info", dict)
    monkeypatch.setattr(mx, "set_cache_limit", refuse)
    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    with memory_limits():
        pass
