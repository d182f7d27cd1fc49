"""The figures that pages quote are those of the files of results; website/figures.py reads them."""

import figures


def test_tables_are_those_of_records_and_results():
    """The README's tables and the gallery's are what `python website/figures.py` writes."""
    readme = figures.README.read_text(encoding="utf-8")
    assert figures.readme_table() in readme
    assert figures.evidence_table() in readme
    assert figures.skill_table() in readme
    assert figures.gallery_table() in figures.GALLERY.read_text(encoding="utf-8")
