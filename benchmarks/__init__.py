"""Programs that measure and print JSON; run them on a quiet machine, and compare only what one run interleaved."""
