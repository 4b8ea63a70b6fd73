"""How an evaluation fails on what it was given: a checkpoint, the data set of a task, a server.

The patterns are the words of transformers 5, safetensors, vLLM 0.32, datasets, lm-eval 0.4.13 and its HTTP clients.
"""

from typing import Final

from fp8cli.core.processes.failure_pattern import pattern

_WEIGHTS: Final = "fp8 inspect CHECKPOINT says which file is broken; fetch or make it again"
_TRUST: Final = "read that code, and if you trust it: --model-arg trust_remote_code=true"
_LOGIN: Final = "accept its terms on its page, then log in: hf auth login"
_SERVER: Final = "start it, or name it with --server URL; curl URL/v1/models shows whether it answers"

_DATA: Final = (
    pattern(
        r"Dataset '(?P<name>[^']+)' is a gated dataset",
        "data",
        "the data set `{name}` is gated: its authors let in only those who accept its terms",
        _LOGIN,
    ),
    pattern(
        r"Couldn't reach '(?P<name>[^']+)' on the Hub \(OfflineModeIsEnabled\)",
        "data",
        "the data set `{name}` is not in the cache, and HF_HUB_OFFLINE is set",
        "fetch it once where there is a network: HF_HUB_OFFLINE=0 hf download --repo-type dataset {name}",
    ),
    pattern(
        r"Couldn't reach '(?P<name>[^']+)' on the Hub|Hub for dataset '(?P<other>[^']+)'",
        "data",
        "the data set `{name}{other}` is not in the cache, and the Hub cannot be reached",
        "check the network and HF_ENDPOINT; fp8 doctor asks the Hub",
    ),
    pattern(
        r"Dataset '(?P<name>[^']+)' doesn't exist on the Hub or cannot be accessed",
        "data",
        "there is no data set `{name}` on the Hub, or it is not shown to you",
        "check its name; if it is private, log in: hf auth login",
    ),
    pattern(
        r"Dataset scripts are no longer supported, but found (?P<name>\S+)",
        "data",
        "the data set comes as a program, `{name}`, which the library `datasets` no longer runs",
        "choose a task whose data set comes as files",
    ),
    pattern(
        r"(?:Unable to find|Couldn't find any data file at) '?(?P<file>[^']+?)'?\.?$",
        "data",
        "the data file `{file}` is not there",
        "a task's `data_files` count from the folder the command is started in; absolute paths are safer",
    ),
)

_MODEL: Final = (
    pattern(
        r"contains custom code which must be executed|consider setting `trust_remote_code=True`"
        r"|requires you to execute the (?:configuration|modeling|tokenizer) file",
        "model",
        "the checkpoint brings code of its own, which is run only when you say so",
        _TRUST,
    ),
    pattern(
        r"has model type `(?P<name>[^`]+)` but Transformers does not recognize this architecture",
        "model",
        "transformers does not know the architecture `{name}`",
        "a newer version may; {doctor} shows which one is there",
    ),
    pattern(
        r"Model architectures (?P<names>.+?) are not supported for now",
        "model",
        "vLLM does not know the architecture {names}",
        "try --backend hf, or a newer vLLM",
    ),
    pattern(
        r"gated repo(?:sitory)?\b.*?https?://[^/\s]+/(?P<page>[\w.-]+/[\w.-]*\w)",
        "model",
        "`{page}` is gated: its authors let in only those who accept its terms",
        _LOGIN,
    ),
    pattern(
        r"(?<!\S)(?P<name>\S+) is not a local folder and is not a valid model identifier",
        "model",
        "`{name}` is neither a folder nor a model of the Hub that is shown to you",
        "check its name; if it is private, log in: hf auth login",
    ),
    pattern(r"SafetensorError: (?P<text>.+)", "model", "a file of weights is broken: {text}", _WEIGHTS),
    pattern(
        r"Error no file named (?P<file>\S+?),? .*found in directory (?P<folder>.+?)\.?$",
        "model",
        "`{folder}` has no weights: no file `{file}`",
        _WEIGHTS,
    ),
    pattern(
        r"You set `ignore_mismatched_sizes` to `False`|size mismatch for (?P<name>\S+)",
        "model",
        "tensors of the checkpoint have other shapes than its config.json says",
        "fp8 inspect CHECKPOINT names them",
    ),
    pattern(
        r"Couldn't instantiate the backend tokenizer",
        "model",
        "the checkpoint has no tokenizer that can be loaded",
        "copy tokenizer.json and tokenizer_config.json from the original model",
    ),
    pattern(
        r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len \(\w+=(?P<most>\d+)",
        "model",
        "texts of {asked} tokens are longer than the {most} that the model is made for",
        "choose --max-length {most} or less",
    ),
    pattern(
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<parts>\d+)\)",
        "model",
        "{heads} attention heads cannot be shared out among {parts} GPUs",
        "choose a --tensor-parallel that divides {heads}",
    ),
)

_SERVERS: Final = (
    pattern(
        r"Cannot connect to host (?P<host>\S+)|HTTPConnectionPool\(host='(?P<name>[^']+)', port=(?P<port>\d+)\)"
        r".*Connection refused|ConnectionRefusedError",
        "server",
        "no server answers at {host}{name} {port}",
        _SERVER,
    ),
    pattern(
        r"API request failed! Status code: (?P<code>\d+), Response text: (?P<text>.*?)(?:\. Retrying.*)?$",
        "server",
        "the server answers with HTTP {code}: {text}",
        "curl URL/v1/models shows the models it serves; its own log says more",
    ),
    pattern(
        r"Address already in use",
        "other",
        "a port that vLLM wants is taken",
        "end the other process, or set VLLM_PORT to a free one",
    ),
)

INPUT_FAILURES: Final = (*_DATA, *_MODEL, *_SERVERS)
"""The first that fits a statement counts."""
