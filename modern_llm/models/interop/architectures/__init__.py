"""One file an architecture. A new one is a file here and its class in `ARCHITECTURES`."""

from modern_llm.models.interop.architecture import Architecture
from modern_llm.models.interop.architectures.gemma2 import Gemma2
from modern_llm.models.interop.architectures.gemma3 import Gemma3
from modern_llm.models.interop.architectures.gpt2 import GPT2
from modern_llm.models.interop.architectures.gpt_oss import GptOss
from modern_llm.models.interop.architectures.granite import Granite
from modern_llm.models.interop.architectures.llama import Llama
from modern_llm.models.interop.architectures.mistral import Mistral
from modern_llm.models.interop.architectures.mixtral import Mixtral
from modern_llm.models.interop.architectures.olmo2 import Olmo2
from modern_llm.models.interop.architectures.phi3 import Phi3
from modern_llm.models.interop.architectures.qwen2 import Qwen2
from modern_llm.models.interop.architectures.qwen3 import Qwen3
from modern_llm.models.interop.architectures.qwen3_moe import Qwen3Moe
from modern_llm.models.interop.architectures.smollm3 import SmolLM3

# Those that models are exported to stand in the order of preference: the simplest first.
_ALL: list[type[Architecture]] = [
    Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3Moe, GptOss, SmolLM3, Granite, Phi3, Olmo2, Gemma2, Gemma3, GPT2,
]  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {kind.model_type: kind() for kind in _ALL}
