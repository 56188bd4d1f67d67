"""emotune: a DVC pipeline that teaches a language model to reply in the emotion it is told to have."""

import logging

# peft imports bitsandbytes, which on a processor with AVX512-BF16 looks for a kernel on the Hub, and says in the middle
# of nearly every stage that there is none; nf4 here uses none (models/nf4.py).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
