"""A Hub on loopback for the real clients of `huggingface_hub` and `transformers`: no account, no
network.

It imitates what `hf-evomerge push`, `space` and `reproduce`, `from_pretrained`, `push_to_hub` and
the `hf` command ask for: repositories of models, datasets and Spaces, commits of regular and LFS
files, branches, tags, revisions, trees, downloads with redirects and ranges, the checks of cards,
and errors by which the client picks its exception. The shapes come from the client's code and from
recorded answers; they were not compared with the real Hub call by call.

It does not imitate git clone and push, Xet, gated repositories, likes, scans, quotas, pages for a
browser, pull requests, running a Space, search, `hf repos list`,
`settings`, `move` and `duplicate`, inference, `.gitignore`, git's own ids of commits, or freeing
the space of what is deleted. An address below `/api` that it does not know is answered with 501
and a line that names it.

It listens on 127.0.0.1 and trusts whoever asks. There is one user with one token, which is no
secret; other programs of the same user can read the folder. An answered commit is kept, unless the
process is killed while it writes.
"""

from .hub import LocalHub

__all__ = ["LocalHub"]
