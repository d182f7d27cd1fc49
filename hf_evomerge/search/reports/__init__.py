"""Reports of a running search: the live table, and the trackers of `report_to`."""
