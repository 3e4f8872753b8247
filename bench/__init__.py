"""The benchmark: fastbert and every baseline, interleaved in one run, behind a parity gate."""
