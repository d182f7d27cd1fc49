"""Names of what a search leaves in its folder."""

SEARCH_FILE = "search.yaml"
RESULTS_FILE = "results.json"
INSTEAD_FILE = "instead.yaml"  # recipe of a simpler model that does as well as the winner
MODEL_FOLDER = "model"
TOGETHER_FOLDER = "model-with-lora"  # a merge that a LoRA learned beside
PLOTS_FOLDER = "plots"
WRITTEN = "written"
"""The study's note of the sha256 of what its search left beside it, by the name of the file."""
REPORT = "report"
"""The study's note of its results in words: the table and the verdict."""
