"""Record what transformers 4.56.2 computes where transformers 5 no longer can.

Run in an environment with torch 2.13.0 and transformers 4.56.2:
    python tests/models/make_golden.py
It writes golden/transformers4.json; the weights follow from their names (golden_cases.fill).
"""

import json
from pathlib import Path

import golden_cases
import torch
import transformers


def main() -> None:
    recorded = {}
    for label, case in golden_cases.CASES.items():
        config = getattr(transformers, case["config"])(
            attn_implementation="eager", **golden_cases.settings(case)
        )
        model = getattr(transformers, case["model"])(config).double().eval()
        golden_cases.fill(model)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        with torch.no_grad():
            output = model(**golden_cases.inputs(case))
        recorded[label] = [round(float(x), 12) for x in output[0].flatten()]
    path = Path(__file__).parent / "golden" / "transformers4.json"
    path.write_text(json.dumps(recorded, indent=0) + "\n")
    print(f"{len(recorded)} cases by transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
