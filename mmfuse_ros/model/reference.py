"""The plain way to run the model, which speed is compared with: eager, fp32, part after part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfuse_ros.model.preprocess import ImageSpec
from mmfuse_ros.model.system import RoboticFeedbackSystem
from mmfuse_ros.samples import Signal


class Reference:
    """A window as the original guide has it: no batch, no cast, processors of `transformers`.

    Args:
        system: on the CPU or a GPU; runs in fp32 and stays as it is.
    """

    def __init__(self, system: RoboticFeedbackSystem) -> None:
        from transformers import Wav2Vec2FeatureExtractor

        self._system = system.eval()
        self._images = _image_processor(system.vision.spec)
        spec = system.audio.spec
        self._audio = Wav2Vec2FeatureExtractor(
            sampling_rate=spec.rate_hz, do_normalize=spec.do_normalize
        )

    @torch.no_grad()
    def window(
        self, images: Mapping[str, npt.NDArray[np.uint8]], signals: Mapping[str, Signal]
    ) -> npt.NDArray[np.float32]:
        """Return the fused vector, (D,); arguments as of `Engine.window`, audio at 16 kHz."""
        system = self._system
        vectors: dict[str, torch.Tensor] = {}
        for name, image in images.items():
            pixels = self._images(image, return_tensors="pt")["pixel_values"]
            vectors[name] = system.vision.model(pixel_values=pixels.to(system.device)).image_embeds
        if "audio" in signals:
            wave = signals["audio"].values[0]
            values = self._audio(
                wave, sampling_rate=system.audio.spec.rate_hz, return_tensors="pt"
            )["input_values"]
            hidden = system.audio.model(input_values=values.to(system.device)).last_hidden_state
            vectors["audio"] = hidden.mean(dim=1)
        for name in ("pressure", "emg"):
            if name in signals:
                values = torch.from_numpy(signals[name].values)[None]
                vectors[name] = getattr(system, name)(values.to(system.device))
        return system.fuse(vectors)[0].cpu().numpy()


def _image_processor(spec: ImageSpec) -> Any:
    """CLIP's image processor as the guide had it: PIL, on the CPU."""
    kind: Any
    try:
        from transformers.models.clip import image_processing_pil_clip

        kind = image_processing_pil_clip.CLIPImageProcessorPil
    except ImportError:  # transformers 4, where there is one alone
        from transformers import CLIPImageProcessor

        kind = CLIPImageProcessor
    return kind(
        size={"shortest_edge": spec.size},
        crop_size={"height": spec.crop, "width": spec.crop},
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def window_flops(system: RoboticFeedbackSystem, window: Any) -> int:
    """Return the floating-point operations of one window's matrix products and convolutions.

    Args:
        window: called once; runs the model in torch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        window()
    return int(counter.get_total_flops())
