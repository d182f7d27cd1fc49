"""What the tests of the Space talk to: a page that runs, and what transformers itself would
answer."""

import httpx


def greedy(folder, prompt, tokens=8, path=None, scales=None):
    """What transformers' own generation answers, within the model's positions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hf_evomerge  # noqa: F401

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = model if path is None else model.with_path(path, scales)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    room = model.config.get_text_config().max_position_embeddings - inputs["input_ids"].shape[1]
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=min(tokens, room), do_sample=False, pad_token_id=0
        )
    return str(
        tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


def shown(published):
    """A model on show, without its weights."""
    from models import Host
    from showcase import Showcase

    show = Showcase("")
    show.published = published
    show.host = Host(published)
    show.ready.set()
    return show


class Served:
    """A page that runs, and what is behind it."""

    def __init__(self, blocks, show):
        self.blocks = blocks
        self.show = show
        self.url = blocks.local_url

    def client(self):
        from gradio_client import Client

        return Client(self.url, verbose=False)

    def fill_queue(self):
        """Ask and ask until the queue takes no more; returns how that was said."""
        body = {"data": ["w1", "evolved", 1, None, None, None]}
        for _ in range(200):
            answer = httpx.post(f"{self.url}gradio_api/call/answer", json=body, timeout=30)
            if answer.is_error:
                return answer
        raise AssertionError("the queue has no end")
