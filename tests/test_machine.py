"""Cores and memory of a container, where they are less than the machine's."""

from hf_evomerge import machine


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    """A container's share of time bounds the cores, and its limit the free memory, of which cached
    files are no use."""
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    assert machine.cores() >= 1
    assert machine.free_memory() > 10**8
    for name, text in (
        ("cpu.max", "150000 100000"),
        ("memory.max", "5000000"),
        ("memory.current", "3000000"),
        ("memory.stat", "anon 1000000\ninactive_file 500000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert machine.cores() == 1
    assert machine.free_memory() == 2_500_000
