"""The benchmark: our rows and every rival's, interleaved in one run, behind a parity gate."""
