"""SDR of a model on songs whose stems are known, between a floor and a ceiling.

    python -m benchmarks.quality FOLDER... [--model NAME|PATH] [--size FRAMES] [--context FRAMES] [--json FILE]

Every FOLDER holds `vocals.*` and `instrumental.*` of one song; their sum is the mixture that is separated. The floor is
the mixture itself, taken for the stem; the ceiling is the ideal ratio mask on the model's STFT.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from vocalremover import Separator, read
from vocalremover.evaluate import ideal_ratio_mask, sdr
from vocalremover.separate import Inference


def load_stem(folder: Path, stem: str) -> tuple[Tensor, int]:
    """Audio `[channels, samples]` and rate of the one file of this stem."""
    (path,) = folder.glob(f"{stem}.*")
    return read(path)


def score(separator: Separator, folder: Path) -> dict[str, float | str]:
    """All the numbers of one song, in dB."""
    vocals, rate = load_stem(folder, "vocals")
    instrumental, _ = load_stem(folder, "instrumental")
    samples = min(vocals.shape[-1], instrumental.shape[-1])
    vocals, instrumental = vocals[:, :samples], instrumental[:, :samples]
    mixture = vocals + instrumental
    stems = separator.separate(mixture, rate)
    stft = separator.spec.stft
    parts = stft.forward(vocals), stft.forward(instrumental)
    ceiling = stft.inverse(ideal_ratio_mask(*parts) * sum(parts), samples)
    return {
        "song": folder.name,
        "vocals": sdr(stems["vocals"], vocals),
        "vocals_mixture": sdr(mixture, vocals),
        "vocals_ideal": sdr(ceiling, vocals),
        "instrumental": sdr(stems["instrumental"], instrumental),
        "instrumental_mixture": sdr(mixture, instrumental),
        "instrumental_ideal": sdr(mixture - ceiling, instrumental),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--size", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    separator = Separator.load(options.model, inference=Inference(size=options.size, context=options.context))
    with torch.inference_mode():
        rows = [score(separator, folder) for folder in options.folders]
    columns = [column for column in rows[0] if column != "song"]
    rows.append({"song": "median"} | {column: statistics.median(row[column] for row in rows) for column in columns})
    print(f"{'SDR in dB':28}" + "".join(f"{column:>22}" for column in columns))
    for row in rows:
        print(f"{row['song']:28.28}" + "".join(f"{row[column]:22.2f}" for column in columns))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
