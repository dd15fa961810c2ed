"""The versions of RWKV. Later ones come first, since they keep tensor names of earlier ones."""

from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.architectures.rwkv5 import RWKV5_0, RWKV5_1, RWKV5_2
from rwkv_core.architectures.rwkv6 import RWKV6
from rwkv_core.architectures.rwkv7 import RWKV7

VERSIONS = (RWKV7, RWKV6, RWKV5_2, RWKV5_1, RWKV5_0, RWKV4)
