"""Results of a search: table, front, verdict, answers, plots, export."""
