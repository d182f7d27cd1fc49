"""The figures that pages quote are those of the files of results; website/figures.py reads them."""

import re

import figures


def test_tables_of_the_demo_are_those_of_its_records():
    """The README's first table and the gallery's are what `python website/figures.py` writes."""
    assert figures.readme_table() in figures.README.read_text(encoding="utf-8")
    assert figures.gallery_table() in figures.GALLERY.read_text(encoding="utf-8")


def test_the_second_table_is_of_recorded_runs():
    """The README's figures of merges and LoRA are means over the runs in `benchmarks/results`."""
    table = figures.README.read_text(encoding="utf-8").partition("| pair |")[2]
    quoted = re.findall(r"(?<=[ |])\.\d{3}", table.partition("\n\n")[0])
    assert [float(figure) for figure in quoted] == [
        *figures.run_figures(),
        *figures.evidence_figures(),
    ]


def test_the_table_of_skills_is_of_recorded_runs():
    """What README says is kept of both skills is a mean over the cells in `benchmarks/results`."""
    table = figures.README.read_text(encoding="utf-8").partition("| prompts |")[2]
    quoted = re.findall(r"(?<=[ |*])\.\d{2}", table.partition("\n\n")[0])
    assert [float(figure) for figure in quoted] == [*figures.skill_figures()]
