"""A completions server on the loopback device, with a real model behind it, that answers as vLLM's does."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST_LOGPROBS = 10
"""More are refused, as servers do."""


class Completions:
    """The model, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ids = True
        """Whether tokens are named by their ids to those who ask for it."""
        self._one_at_a_time = threading.Lock()
        self.requests: list[Mapping[str, Any]] = []

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._one_at_a_time:
            self.requests.append(request)
            return {"choices": [self._choice(index, request) for index in range(len(request["prompt"]))]}

    def _choice(self, index: int, request: Mapping[str, Any]) -> dict[str, Any]:
        prompt = torch.tensor([request["prompt"][index]])
        with torch.no_grad():
            tokens = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request["max_tokens"],
                do_sample=False,
                pad_token_id=0,
            )[0]
            if not request.get("echo"):
                text = self._tokenizer.decode(tokens[prompt.shape[1] :], skip_special_tokens=True)
                return {"index": index, "text": min((text.partition(stop)[0] for stop in request["stop"]), key=len)}
            logprobs = self._model(tokens[None]).logits[0].float().log_softmax(-1)
        named = [self._name(token, request) for token in range(logprobs.shape[-1])]
        scores, tops = [None], [None]
        for position, token in enumerate(tokens[1:].tolist()):
            best = logprobs[position].topk(request["logprobs"])
            scores.append(float(logprobs[position, token]))
            tops.append(
                {named[each]: float(value) for each, value in zip(best.indices, best.values, strict=True)}
                | {named[token]: scores[-1]}
            )
        return {"index": index, "text": "", "logprobs": {"token_logprobs": scores, "top_logprobs": tops}}

    def _name(self, token: int, request: Mapping[str, Any]) -> str:
        by_id = self.ids and request.get("return_tokens_as_token_ids")
        return f"token_id:{token}" if by_id else str(self._tokenizer.convert_ids_to_tokens(token))


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Completions]]:
    """Serve a checkpoint; yield the address of its completions."""
    completions = Completions(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            refused = request.get("logprobs", 0) > MOST_LOGPROBS
            body = json.dumps({"error": "too many logprobs"} if refused else completions.answer(request)).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/completions", completions
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
