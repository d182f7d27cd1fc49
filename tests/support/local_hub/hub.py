"""The hub as a whole: a folder, a port, an account, and the environment that points clients at
it."""

import shlex
import threading
from pathlib import Path

from .access import Account, Call
from .routes import answer
from .server import Handler, Server
from .store import Store

TOKEN = "hf_local"


class LocalHub:
    """A Hub on this machine, for the real clients of `huggingface_hub` and `transformers`. No
    account and no network.

    Only programs of this machine can reach it, and they are trusted. Everything but the token is
    kept in `root` and is there again after a restart. What it does not imitate is listed in the
    package's docstring.

    Args:
        root: The folder to keep everything in; made if it is not there.
        port: The port; 0 for any that is free.
        user: The user's name, and so the namespace of their repositories.
        orgs: More namespaces that the user can write in.

    Example:
        ```py
        with LocalHub("my-hub") as hub:
            subprocess.run([sys.executable, "push.py"], env={**os.environ, **hub.environment()}, check=True)
            print(HfApi(endpoint=hub.endpoint, token=hub.token).list_repo_files("local/my-model"))
        ```
    """  # noqa: E501

    handler = Handler

    def __init__(self, root, port=0, *, user="local", orgs=()):
        self._account = Account(user, TOKEN, tuple(orgs))
        self.root = Path(root).absolute()
        self.token = TOKEN
        self.user = user
        self._port = port
        self._server = None
        self._thread = None

    @property
    def endpoint(self):
        """The address of a hub that runs, for `HF_ENDPOINT` and `HfApi(endpoint=...)`."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, *, home=None):
        """The variables that make a new process talk to this hub and to nothing else.

        They have to be set before `huggingface_hub` is imported, which reads them once. Large files
        go by LFS.

        Args:
            home: The folder of the client's cache; by default one in `root`, so that these
                repositories are not mixed with those of the real Hub that have the same names.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home or self.root / "client"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "HF_HUB_DISABLE_XET": "1",
        }

    def describe(self):
        """What a person needs to know: where it is, what to export in another terminal, and what it
        does not do."""
        exports = "\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in self.environment().items()
        )
        return (
            f"A Hub for programs on this machine: {self.endpoint}, as user {self.user}.\n"
            f"Everything is kept in {self.root}. Ctrl-C stops it.\n\n"
            f"In another terminal:\n\n{exports}\n\n"
            "What it does not imitate is listed in tests/support/local_hub/__init__.py."
        )

    def start(self):
        """Begin to serve, in threads of this process."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._store = Store(self.root)
        self._server = Server(self._port, self)
        self._port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def respond(self, request):
        """Make the answer to a request."""
        return answer(Call(request, self._store, self._account, self.endpoint))

    def stop(self):
        """Stop serving. `start` begins again at the same port."""
        if self._server is not None and self._thread is not None:
            self._server.close()
            self._thread.join()
            self._server = self._thread = None

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, error, trace):
        self.stop()
