"""The table of known models: what each one is, how its input is made and where its author published the weights.

Plain data, one entry a model; `models` makes a `ModelSpec` of each. Weights are never held here.
"""

from typing import Any

from vocalremover.chunks import Chunking, trapezoid
from vocalremover.spectrogram import STFT

UNSTATED = "not stated for the weights (the code is MIT)"

THIN: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 2,
    "channels": 8,
    "dropout": 0.1,
    "n_fft": 2048,
    "num_heads": 8,
    "expansion": 24,
}
"""What thin and V1, two sets of weights of one network, have in common."""

ROFORMER: dict[str, Any] = {
    "layout": "msst", "depth": 12, "stereo": True, "num_stems": 1, "dim_head": 64, "heads": 8,
    "time_transformer_depth": 1, "freq_transformer_depth": 1, "linear_transformer_depth": 0,
    "stft_n_fft": 2048, "stft_hop_length": 441, "stft_win_length": 2048,
    "mask_estimator_depth": 2, "mlp_expansion_factor": 4,
}  # fmt: skip
"""What the RoFormers that everybody uses have in common."""

BANDS = [*[2] * 24, *[4] * 12, *[12] * 8, *[24] * 8, *[48] * 8, 128, 129]
"""The bins of viperx's 62 bands."""

WAVEFORM: dict[str, Any] = {
    "domain": "waveform",
    "reads": "complex",
    "target": "vocals",
    "stft": STFT(2048, 441, pad_mode="reflect"),
    "chunking": trapezoid(352800, 0.5),
    "peak": False,
}
"""How they hear a song: in windows of eight seconds, half of which the next one shares."""

UVR = "https://github.com/TRvlvr/model_repo/releases/download/all_public_uvr_models/"
NO_LICENCE = "not stated for the weights"

TABLE: dict[str, dict[str, Any]] = {
    "default": {
        "network": "compact",
        "args": {},
        "stft": STFT(4096, 1024),
        "target": "vocals",
        "chunking": Chunking(size=512, context=64),
        "peak": False,
        "filename": "default.safetensors",
        "license": "MIT",
        "note": "Small and fast; trained for this project and shipped with it.",
    },
    "full": {
        "network": "full",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 5,
            "num_layers": 15,
        },
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.full.pth",
        "note": "carperbr, 2022: a U-Net whose every channel attends; its weights never appeared.",
    },
    "thin": {
        "network": "thin",
        "args": THIN,
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.thin.pth",
        "url": "https://mega.nz/file/3ggnHC6Y#mZl-gjUSKpvstuGZrUQmOxM-QyqCxrUgjthBrHIU0gc",
        "note": (
            "carperbr, 2022, local.87 (about a million steps); its author also names crops of 2048 without padding. "
            "Epoch 6 is https://mega.nz/file/rw4RkBrD#2MbnMFujw8hGqsTZxaW16FWwi-m-GW4vqtask45wJBM"
        ),
    },
    "v1": {
        "network": "thin",
        "args": THIN,
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.v1.pth",
        "url": "https://mega.nz/file/C5pGXYYR#ndHuj-tYWtttoj8Y4QqAkAruvZDYcQONkTHfZoOyFaQ",
        "note": "carperbr, 2023: the thin frame transformer after about 1.2 million steps.",
    },
    "v2b": {
        "network": "v2b",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 6,
            "transformer_channels": [12] * 7,
            "sinusoid": "input",
        },
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.v2b.pth",
        "url": "https://mega.nz/file/a843wbTQ#E319mlp5qjsyky6PRp-zikou-YtWb9TVpbtHGaVh2AA",
        "note": "carperbr, 2023: a dozen attention maps beside every level of a U-Net over frequency.",
    },
    "v3": {
        "network": "v3",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 4,
            "num_layers": 12,
            "rotary": False,
        },
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.v3.pth",
        "note": "carperbr, 2023: twelve layers at the full resolution; its weights never appeared.",
    },
    "newft": {
        "network": "newft",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 16,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 10240,
            "num_bridge_layers": 4,
            "num_attention_maps": 4,
        },
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.newft.pth",
        "note": 'carperbr, 2023: the "new frame transformer", nine levels, gated logits; its weights never appeared.',
    },
    "newft_gan": {
        "network": "newft_gan",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "dropout": 0.1,
            "n_fft": 2048,
            "num_heads": 8,
            "expansion": 10240,
            "num_bridge_layers": 4,
            "num_attention_maps": 1,
        },
        "chunking": Chunking(size=1024, context=512),
        "filename": "model.newft_gan.pth",
        "note": "carperbr, 2023: the generator of its adversarial training, which also finds voices; never published.",
    },
    "primer": {
        "network": "primer",
        "args": {
            "in_channels": 2,
            "channels": 2,
            "depth": 5,
            "num_transformer_encoders": 0,
            "num_transformer_decoders": 4,
            "n_fft": 2048,
            "cropsize": 2048,
            "num_bands": 4,
            "feedforward_dim": 6144,
            "bias": True,
        },
        "chunking": Chunking(size=2048),
        "note": "carperbr's frame primer of July 2022, the run with 150,617,664 parameters.",
    },
    "primer_pre": {
        "network": "primer",
        "args": {
            "in_channels": 2,
            "channels": 2,
            "depth": 5,
            "num_transformer_encoders": 0,
            "num_transformer_decoders": 2,
            "n_fft": 2048,
            "cropsize": 512,
            "num_bands": 16,
            "feedforward_dim": 4096,
            "bias": True,
        },
        "chunking": Chunking(size=512),
        "note": "The frame primer as its pre-training script makes it.",
    },
    "resnet": {
        "network": "resnet",
        "args": {"nin": 2, "nout": 8, "cropsize": 1024, "n_fft": 2048, "num_res_blocks": 2},
        "chunking": Chunking(size=1024),
        "note": "carperbr's FrameResUNet of July 2022, of which no trained weights are known.",
    },
    "v7": {
        "network": "v7",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 2,
        },
        "chunking": Chunking(size=4096),
        "filename": "model.v7.pth",
        "url": "https://mega.nz/file/L55UwZAC#leWuP1ic9Rt4SpDVHeo6tnimaEIw5095ORoiaosF1Do",
        "note": "carperbr, 2024: a U-Net over frequency down to four features.",
    },
    "v8": {
        "network": "v8",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "channels": 8,
            "expansion": 2.2,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
        },
        "chunking": Chunking(size=4096),
        "filename": "model.v8.pth",
        "url": "https://mega.nz/file/n8IUwJZK#D9-1u7RqYZF4lt_lJ5By58PPj4a0itdojF-fUZf_WQA",
        "note": "carperbr, 2024: every level also attends to the input itself.",
    },
    "v9": {
        "network": "v9",
        "args": {
            "in_channels": 10,
            "out_channels": 2,
            "channels": 16,
            "expansion": 512,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
            "num_layers": 17,
        },
        "chunking": Chunking(size=4096, multiple=256),
        "recurrent": True,
        "filename": "model.v9.pth",
        "url": "https://mega.nz/file/q4YhCAqZ#j-8LhhTFl5sd81-epvg0-GcBGaVXCutM6GKR7Nhjodc",
        "note": "carperbr, 2024: also reads what it left of the two crops before, so crops are not independent.",
    },
    "v10": {
        "network": "v10",
        "args": {
            "in_channels": 2,
            "out_channels": 2,
            "embedding": 8,
            "expansion": 4,
            "n_fft": 2048,
            "dropout": 0,
            "num_heads": 8,
            "num_attention_maps": 1,
        },
        "chunking": Chunking(size=4096),
        "filename": "model.v10.pth",
        "url": "https://mega.nz/file/GwpXBBgb#eJLKvJaO589F-w5aOz6rzNMuanb2XKyNpPPGAXZoNj4",
        "note": "carperbr's last and largest frame transformer (2024), a U-Net over time.",
    },
    "bs_roformer": {
        **WAVEFORM,
        "network": "bs_roformer",
        "args": {**ROFORMER, "dim": 512, "freqs_per_bands": BANDS},
        "filename": "model_bs_roformer_ep_317_sdr_12.9755.ckpt",
        "url": f"{UVR}model_bs_roformer_ep_317_sdr_12.9755.ckpt",
        "license": NO_LICENCE,
        "sha256": "5b84f37e8d444c8cb30c79d77f613a41c05868ff9c9ac6c7049c00aefae115aa",
        "note": "viperx, 2024: BS-RoFormer for vocals, epoch 317, also called BS-Roformer-Viperx-1297.",
    },
    "bs_roformer_937": {
        **WAVEFORM,
        "network": "bs_roformer",
        "args": {**ROFORMER, "dim": 384, "freqs_per_bands": BANDS, "stft_hop_length": 512},
        "target": "no drum-bass",
        "instruments": ("no drum-bass", "drum-bass"),
        "stft": STFT(2048, 512, pad_mode="reflect"),
        "chunking": trapezoid(131584, 0.5),
        "filename": "model_bs_roformer_ep_937_sdr_10.5309.ckpt",
        "url": f"{UVR}model_bs_roformer_ep_937_sdr_10.5309.ckpt",
        "license": NO_LICENCE,
        "note": (
            "viperx, 2024: BS-RoFormer, epoch 937, also called BS-Roformer-Viperx-1053. It leaves out drums and bass "
            "and keeps voices; the yaml files of MSST and UVR that go round with it name other stems."
        ),
    },
    "mel_roformer": {
        **WAVEFORM,
        "network": "mel_roformer",
        "args": {**ROFORMER, "dim": 384, "depth": 6, "num_bands": 60, "sample_rate": 44100},
        "filename": "MelBandRoformer.ckpt",
        "aliases": ("vocals_mel_band_roformer.ckpt", "Kim_MelBandRoformer.ckpt"),
        "url": "https://huggingface.co/KimberleyJSN/melbandroformer/resolve/main/MelBandRoformer.ckpt",
        "license": "CC-BY-NC-SA-4.0 (says openmirlab's list of models; the author's page has said MIT as well)",
        "sha256": "87201f4d31afb5bc79993230fc49446918425574db48c01c405e44f365c7559e",
        "note": "Kimberley Jensen, 2024: Mel-Band RoFormer for vocals, the ancestor of most others.",
    },
    "mel_roformer_3005": {
        **WAVEFORM,
        "network": "mel_roformer",
        "args": {**ROFORMER, "dim": 384, "num_bands": 60, "sample_rate": 44100},
        "filename": "model_mel_band_roformer_ep_3005_sdr_11.4360.ckpt",
        "url": f"{UVR}model_mel_band_roformer_ep_3005_sdr_11.4360.ckpt",
        "license": NO_LICENCE,
        "sha256": "21b9d0958e35b8ebfbe2afe69bbd5444e5ffe2f5d80ae0d583b833d2f3c0d139",
        "note": "viperx, 2024: Mel-Band RoFormer for vocals, epoch 3005, also called Mel-Roformer-Viperx-1143.",
    },
}
