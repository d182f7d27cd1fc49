"""Pictures of a search and of its winner. Knows how things look and nothing of how they were found.

A picture is made once, as a scene of marks in data units (`fitness`, `front`, `path`, `weights`),
and painted as a file (`matplotlib_painter`) or for a page (`svg`).
"""
