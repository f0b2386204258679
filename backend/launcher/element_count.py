"""A function of the embedded Triton (2.51, x86-64) that counts a tensor's elements, and one that cannot overflow.

    GetElementCount(dims)    the product of all dims, modulo 2^64; -1 where one of them is -1

So a tensor of 2^62 + 1 INT32 has "4 bytes". The server then finds four bytes right, and its stub ends. Ours returns -1,
"not known", where a dim or the product is negative or 2^32 and more. The server refuses such a tensor by itself: a
tensor has less than 2 GiB.
"""

from __future__ import annotations

_NOP = b"\x90"

COUNT_ELEMENTS = bytes.fromhex(
    "f3 0f 1e fa"  # endbr64
    "48 8b 07"  # mov  rax, [rdi]         the first dim
    "48 8b 77 08"  # mov  rsi, [rdi + 8]  behind the last
    "48 39 c6 74 41"  # cmp  rsi, rax; je none
    "31 c9"  # xor  ecx, ecx              the product
    "ba 01 00 00 00"  # mov  edx, 1       whether this is the first
    "eb 16"  # jmp  dim
    "0f 1f 80 00 00 00 00"  # nop
    "48 83 c0 08"  # next: add  rax, 8
    "49 0f af c8"  # imul rcx, r8
    "31 d2"  # xor  edx, edx
    "48 39 c6 74 1b"  # cmp  rsi, rax; je all
    "4c 8b 00"  # dim: mov  r8, [rax]
    "49 83 f8 ff 74 15"  # cmp  r8, -1; je done
    "84 d2 74 e4"  # test dl, dl; je next
    "48 83 c0 08"  # add  rax, 8
    "4c 89 c1"  # mov  rcx, r8
    "31 d2"  # xor  edx, edx
    "48 39 c6 75 e5"  # cmp  rsi, rax; jne dim
    "49 89 c8"  # all: mov  r8, rcx
    "4c 89 c0 c3"  # done: mov  rax, r8; ret
    "45 31 c0 eb f7"  # none: xor  r8d, r8d; jmp done
)

_IN_BOUNDS = bytes.fromhex(
    "f3 0f 1e fa"  # endbr64
    "48 8b 17"  # mov  rdx, [rdi]         the first dim
    "48 8b 77 08"  # mov  rsi, [rdi + 8]  behind the last
    "31 c0"  # xor  eax, eax
    "48 39 f2 74 24"  # cmp  rdx, rsi; je done
    "ff c0"  # inc  eax                   the product
    "48 8b 0a"  # next: mov  rcx, [rdx]
    "49 89 c8 49 c1 e8 20 75 17"  # mov  r8, rcx; shr r8, 32; jnz unknown
    "48 0f af c1"  # imul rax, rcx
    "48 89 c1 48 c1 e9 20 75 0a"  # mov  rcx, rax; shr rcx, 32; jnz unknown
    "48 83 c2 08"  # add  rdx, 8
    "48 39 f2 75 de"  # cmp  rdx, rsi; jne next
    "c3"  # done: ret
    "48 83 c8 ff c3"  # unknown: or rax, -1; ret
)
COUNT_ELEMENTS_IN_BOUNDS = _IN_BOUNDS.ljust(len(COUNT_ELEMENTS), _NOP)
