"""Load folders with transformers 4, and print what it found: one line of JSON. No fastbert here.

    python oracle_v4.py FOLDER...

Every folder holds a model; inputs.json beside it names its class and the token ids to ask about.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = {}
    for name in sys.argv[1:]:
        folder = Path(name)
        asked = json.loads((folder / "inputs.json").read_text())
        kind = getattr(transformers, asked["class"])
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, torch_dtype=torch.float64, attn_implementation="eager"
        )
        with torch.no_grad():
            output = model.eval()(torch.tensor(asked["ids"]))
        generation = None
        if model.can_generate():
            generation = model.generation_config.max_new_tokens
        found[folder.name] = {
            "missing": sorted(report["missing_keys"]),
            "unexpected": sorted(report["unexpected_keys"]),
            "values": output[0].flatten().tolist(),
            "generation": generation,
        }
    print(json.dumps([transformers.__version__, found]))


if __name__ == "__main__":
    main()
