"""Where the encoders' weights come from. The only file that imports `transformers`.

Nothing falls back: what is missing, damaged or incomplete is one error that says so.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmfuse_ros.errors import CheckpointError, ConfigError
from mmfuse_ros.files import read_bounded
from mmfuse_ros.model.encoders import AudioEncoder, VisionEncoder, seeded
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec
from mmfuse_ros.model.presets import ENCODERS, SystemConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    Source: TypeAlias = str | Path | PretrainedConfig | PreTrainedModel

_LOG = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "MMFUSE_WEIGHTS"

_MAX_JSON_BYTES = 16 << 20

_MAX_LABELS = 100_000  # of a classifier; `transformers` makes a text for each

_TYPES = {
    "vision": ("clip", "clip_vision_model"),
    "audio": ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio"),
}
# Never used outside of masked pre-training, and left out of some checkpoints.
_OPTIONAL_KEYS = ("masked_spec_embed",)


def choose_sources(
    config: SystemConfig, weights: str | Path | None, chosen: Mapping[str, Source | None]
) -> dict[str, Any]:
    """Return where each encoder comes from: what was chosen for it, or what `weights` says."""
    if weights is None and not all(chosen.values()):
        weights = os.environ.get(WEIGHTS_VARIABLE)
        if weights:
            _LOG.warning("weights are %s, from %s", weights, WEIGHTS_VARIABLE)
    weights = weights or "pretrained"
    sources: dict[str, Any] = {}
    for name in ENCODERS:
        preset = getattr(config, name)
        source = chosen[name]
        if source:
            sources[name] = source
        elif weights == "pretrained":
            sources[name] = preset.model_name
        elif weights == "random":
            sources[name] = make_config(preset.architecture)
        elif Path(weights).expanduser().is_dir():
            sources[name] = Path(weights).expanduser() / name
        else:
            raise ConfigError(
                "weights must be 'pretrained', 'random' or a directory with `vision` and `audio` "
                f"in it, got {str(weights)!r}; correct it, or {WEIGHTS_VARIABLE} where it is set"
            )
    return sources


def load_vision(
    source: Source, spec: ImageSpec, *, allow_download: bool = False, seed: int = 0
) -> VisionEncoder:
    """Return the image encoder of a hub id, a directory, a configuration or a ready model.

    Args:
        source: a configuration is built with random weights of `seed`.
        spec: preprocessing of configurations and ready models; loaded weights bring their own.

    Raises:
        CheckpointError: the weights are missing, unreadable, incomplete or of another kind.
    """
    if isinstance(source, (str, Path)):
        model = _from_pretrained(source, "vision", allow_download)
        processor = _processor(source, "image_processor", allow_download)
        name, random = _public_name(source, model), False
    else:
        model, random = _ready(source, "vision", seed)
        processor, name = None, model.config.model_type
    if processor is not None:
        spec = ImageSpec.from_processor(processor, str(source))
    else:
        side = model.config.image_size
        spec = ImageSpec(side, side, spec.mean, spec.std)
    return VisionEncoder(model, spec, name, random)


def load_audio(
    source: Source, spec: AudioSpec, *, allow_download: bool = False, seed: int = 0
) -> AudioEncoder:
    """Return the audio encoder; arguments and errors as of load_vision."""
    if isinstance(source, (str, Path)):
        model = _from_pretrained(source, "audio", allow_download)
        processor = _processor(source, "feature_extractor", allow_download)
        if processor is not None:
            spec = AudioSpec.from_processor(processor, str(source))
        return AudioEncoder(model, spec, _public_name(source, model), random=False)
    model, random = _ready(source, "audio", seed)
    return AudioEncoder(model, spec, model.config.model_type, random)


def make_config(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the `transformers` configuration of a preset's architecture."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**architecture)


def check_config(kind: str, content: Any, where: str) -> None:
    """Refuse what a configuration may not say, before `transformers` sees it.

    Args:
        kind: "vision" or "audio".
        content: the JSON value.
        where: the file, for the message.

    Raises:
        CheckpointError: no object, another type of model, or labels without end.
    """
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in _TYPES[kind]:
        raise CheckpointError(
            f"{kind} weights must be of type {', '.join(_TYPES[kind])}, "
            f"got {model_type!r:.100} in {where}; choose other weights"
        )
    for part in (content, *(v for v in content.values() if isinstance(v, dict))):
        labels = part.get("num_labels", 0)
        if isinstance(labels, int) and labels > _MAX_LABELS:
            raise CheckpointError(
                f"num_labels must be at most {_MAX_LABELS}, got {labels} in {where}; it is "
                "damaged, fetch it again"
            )


def check_size(kind: str, config: PretrainedConfig, sizes: Sequence[int], where: str) -> None:
    """Refuse a configuration that asks for more than twice what the file beside it holds.

    The model is built on the meta device, which takes no memory, and not further than that: a
    number in a damaged configuration can ask for a model without end.

    Args:
        kind: "vision" or "audio".
        config: what to build.
        sizes: numbers in each tensor of the file.
        where: the file, for the message.

    Raises:
        CheckpointError: too large, or `transformers` cannot build it.
    """
    held, own = sum(sizes), threading.get_ident()
    tensors = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if threading.get_ident() != own or parameter is None:
            return  # the hook is the process's, another thread may build a model too
        tensors += 1
        numbers += parameter.numel()
        # Twice: a weight that is normalised is registered as a whole and in parts, and a tensor
        # that the file lacks is named later.
        if tensors > 2 * len(sizes) + 1 or numbers > 2 * held:
            raise CheckpointError(
                f"{kind} configuration must fit weights of {len(sizes)} tensors and {held} "
                f"numbers, got one that asks for more than twice as many in {where}; it is "
                "damaged, fetch it again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _quiet():
            _build(kind, config)
    except CheckpointError:
        raise
    except Exception as error:  # boundary: whatever a damaged configuration makes it raise
        raise CheckpointError(_not_built(kind, where, error)) from error
    finally:
        hook.remove()


def _not_built(kind: str, where: str, error: Exception) -> str:
    return (
        f"{kind} configuration must be one that `transformers` can build, got "
        f"{type(error).__name__}: {error} from {where}; it is damaged, fetch it again"
    )


def _build(kind: str, config: Any) -> PreTrainedModel:
    from transformers import AutoModel, CLIPVisionModelWithProjection

    if kind == "vision":
        return CLIPVisionModelWithProjection(config)
    return AutoModel.from_config(config)


def _ready(source: Any, kind: str, seed: int) -> tuple[PreTrainedModel, bool]:
    if isinstance(source, nn.Module):
        return source.eval(), False  # type: ignore[return-value]
    try:
        with seeded(seed, kind):
            model = _build(kind, source)
    except Exception as error:  # boundary: a checkpoint's configuration may ask for anything
        raise CheckpointError(_not_built(kind, "what was given", error)) from error
    return model.float().eval(), True


def _from_pretrained(source: str | Path, kind: str, allow_download: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    factory: Any = CLIPVisionModelWithProjection if kind == "vision" else AutoModel
    where = str(source)
    # A config.json may name Python code of its own; it is never run, and nobody is asked.
    options: dict[str, Any] = {"local_files_only": not allow_download, "trust_remote_code": False}
    if _is_path(where):
        _check_folder(where, kind)
        where = str(Path(where).expanduser())
        options["use_safetensors"] = True  # a file that somebody handed over is not unpickled
    try:
        with _quiet():
            if _is_path(where):
                content = json.loads(read_bounded(Path(where, "config.json"), _MAX_JSON_BYTES))
                check_config(kind, content, repr(where))
                reader: Any = CLIPVisionConfig if kind == "vision" else AutoConfig
                config = reader.from_pretrained(where, local_files_only=True)
                if sizes := _sizes(Path(where)):
                    check_size(kind, config, sizes, repr(where))
            else:
                config = AutoConfig.from_pretrained(where, **options)
                check_config(kind, {"model_type": config.model_type}, repr(where))
            model, report = factory.from_pretrained(where, output_loading_info=True, **options)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(_missing(where, kind, allow_download, error)) from error
    except Exception as error:  # boundary: whatever a damaged file makes the loaders raise
        raise CheckpointError(
            f"{kind} weights in {where!r} must be readable by `transformers`, "
            f"got {type(error).__name__}: {error}; fetch them again"
        ) from error
    missing = [k for k in report["missing_keys"] if not k.endswith(_OPTIONAL_KEYS)]
    mismatched = [str(k) for k in report["mismatched_keys"]]
    if missing or mismatched:
        # `transformers` fills these with random numbers and goes on.
        raise CheckpointError(
            f"{kind} weights in {where!r} must hold every tensor of the model, missing "
            f"{len(missing)} ({', '.join(sorted(missing)[:5])}), of another shape "
            f"{len(mismatched)} ({', '.join(sorted(mismatched)[:5])}); fetch them again"
        )
    return model.float().eval()


def _check_folder(where: str, kind: str) -> None:
    """Refuse what `transformers` would take: files elsewhere, and pipes, which never end."""
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"{kind} weights must be a directory of `transformers` or a hub id, got {where!r}, "
            "which does not exist; correct the path"
        )
    must = (
        f"{kind} weights directory {where!r} must hold config.json and model.safetensors, "
        "as `save_pretrained` writes them"
    )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{must}; there is no config.json")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    try:
        names = set(json.loads(read_bounded(index, _MAX_JSON_BYTES))["weight_map"].values())
        own = [Path(name).name == name and (folder / name).is_file() for name in names]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{must}; {index.name} is damaged: {error!r}") from error
    if not all(own):
        raise CheckpointError(
            f"{must}; {index.name} must name files of that directory, got "
            + ", ".join(sorted(map(repr, names)))
        )


def _sizes(folder: Path) -> list[int]:
    """Return how many numbers each tensor of a checked folder holds; none is read."""
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            return []  # `transformers` says best what it looked for
        names = json.loads(read_bounded(index, _MAX_JSON_BYTES))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    sizes = []
    for file in files:
        with safe_open(file, "pt") as content:
            sizes += [math.prod(content.get_slice(n).get_shape()) for n in content.keys()]  # noqa: SIM118
    return sizes


def _missing(where: str, kind: str, allow_download: bool, error: OSError) -> str:
    if Path(where).is_dir():
        return (
            f"{kind} weights directory {where!r} must hold config.json and model.safetensors as "
            f"`save_pretrained` writes them: {error}"
        )
    looked = "the hub and the local cache" if allow_download else "the local cache (offline)"
    remedies = [
        f"give a local directory (model.{kind} in the node, {kind}= in Python)",
        "choose weights 'random' to run untrained",
    ]
    if not allow_download:
        remedies.insert(0, "allow the download (model.allow_download, allow_download=True)")
    return (
        f"{kind} weights {where!r} must be in {looked}, and were not found "
        f"({type(error).__name__}); {', or '.join(remedies)}"
    )


def _processor(source: str | Path, part: str, allow_download: bool) -> dict[str, Any] | None:
    """Return the processor configuration that lies beside the weights, if there is one."""
    from transformers.utils import cached_file

    where = str(Path(source).expanduser()) if _is_path(str(source)) else str(source)
    for file in ("preprocessor_config.json", "processor_config.json"):
        try:
            path = cached_file(
                where,
                file,
                local_files_only=not allow_download,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
            if path is None:
                continue
            content = json.loads(read_bounded(path, _MAX_JSON_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} of {where!r} must be readable: {error}") from error
        if isinstance(content, dict):
            content = content.get(part, content if file.startswith("pre") else None)
        if isinstance(content, dict):
            return content
        if content is not None:
            raise CheckpointError(
                f"{file} of {where!r} must hold a JSON object, got {content!r:.100}; fetch it "
                "again"
            )
    _LOG.warning(
        "%s has no preprocessor_config.json; taking the preset's constants. Save the processor "
        "beside the weights to be sure of them",
        where,
    )
    return None


def _is_path(where: str) -> bool:
    return where.startswith(("/", ".", "~")) or where.count("/") > 1 or Path(where).is_dir()


def _public_name(source: str | Path, model: PreTrainedModel) -> str:
    """Return the hub id, or the type of the model for a directory: a path tells of a machine."""
    return model.config.model_type if _is_path(str(source)) else str(source)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loaders' reports and progress bars out of the log; the checks here say more."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
