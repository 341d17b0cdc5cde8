"""Vectors for numba: a register's worth of 64-bit words, and the few operations that the kernels are made of.

numba has no vector type, and what LLVM makes of scalar loops changes with their shape.  So the vectors are spelt out,
in LLVM's own portable operations (`ctpop`, `xor`, compare, bitcast), none of which belongs to one processor: LLVM turns
`ctpop` on bytes into vpopcntb where AVX-512 BITALG is, `cnt` on ARM, two table look-ups on AVX2, and shifts and adds on
anything else.

numba's cache of a kernel knows its own source file and processor, not this file: after a change here, remove
kernels/__pycache__.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


def _block() -> int:
    """Output channels that one vector serves: two AVX2 or two AVX-512 registers of 64-bit words."""
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this machine
        features = {}
    return 16 if features.get("avx512bitalg") else 8


BLOCK = _block()

I1, I8, I32, I64, F32 = *(ir.IntType(bits) for bits in (1, 8, 32, 64)), ir.FloatType()
_WORDS, _BYTES = ir.VectorType(I64, BLOCK), ir.VectorType(I8, 8 * BLOCK)
_INTEGERS, _REALS = ir.VectorType(I32, BLOCK), ir.VectorType(F32, BLOCK)


class Vector(types.Type):
    """numba's name for an LLVM vector; it lives in registers, never in an array."""

    def __init__(self, name: str, llvm_type: ir.VectorType):
        super().__init__(name=f"onebit_{name}_{llvm_type.count}")
        self.llvm_type = llvm_type


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, fe_type.llvm_type)


address = types.intp  # of an array's start, and indices: arrays themselves would be reference-counted at every use
words = Vector("words", _WORDS)  # BLOCK x uint64, also read as bytes
integers = Vector("integers", _INTEGERS)  # BLOCK x int32


def constant(vector: ir.VectorType, value) -> ir.Constant:
    """The same value in every element."""
    return ir.Constant(vector, [value] * vector.count)


def pointer(builder, start, index, llvm_type: ir.Type):
    """Pointer to a vector whose first element is number `index` from the address `start` on."""
    element = getattr(llvm_type, "element", llvm_type)
    first = builder.inttoptr(start, element.as_pointer())
    return builder.bitcast(builder.gep(first, [index]), llvm_type.as_pointer())


def load(builder, start, index, llvm_type: ir.Type):
    """The vector (or scalar) whose first element is number `index` from the address `start` on."""
    value = builder.load(pointer(builder, start, index, llvm_type))
    value.align = 8 if getattr(llvm_type, "element", llvm_type) is I64 else 4  # no more than an element's
    return value


def splat(builder, scalar, vector: ir.VectorType):
    """A scalar in every element."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined),
                                  constant(ir.VectorType(I32, vector.count), 0))


def intrinsic_call(builder, name: str, vector: ir.VectorType, *arguments):
    """LLVM's intrinsic of that name on whole vectors, declared where it is not yet."""
    kind = {I8: "i8", F32: "f32"}[vector.element]
    signature = ir.FunctionType(vector, [vector] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{vector.count}{kind}")
    return builder.call(function, arguments)


@intrinsic
def zero_words(typingctx):
    """No word is set."""
    return words(), lambda context, builder, signature, args: constant(_WORDS, 0)


@intrinsic
def zero_integers(typingctx):
    """BLOCK zeros."""
    return integers(), lambda context, builder, signature, args: constant(_INTEGERS, 0)


@intrinsic
def load_words(typingctx, start, index):
    """BLOCK consecutive words of the array that starts at an address."""
    def generate(context, builder, signature, args):
        return load(builder, *args, _WORDS)
    return words(address, address), generate


@intrinsic
def load_integers(typingctx, start, index):
    """BLOCK consecutive elements of the int32 array that starts at an address."""
    def generate(context, builder, signature, args):
        return load(builder, *args, _INTEGERS)
    return integers(address, address), generate


@intrinsic
def splat_word(typingctx, start, index):
    """One word of the array that starts at an address, BLOCK times."""
    def generate(context, builder, signature, args):
        return splat(builder, load(builder, *args, I64), _WORDS)
    return words(address, address), generate


@intrinsic
def differing(typingctx, a, b):
    """Per byte, the number of bits in which two vectors of words differ: 0..8."""
    def generate(context, builder, signature, args):
        bits = builder.bitcast(builder.xor(*args), _BYTES)
        return builder.bitcast(intrinsic_call(builder, "ctpop", _BYTES, bits), _WORDS)
    return words(words, words), generate


@intrinsic
def count(typingctx, word):
    """The bits set in one word."""
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(*args)


@intrinsic
def add_bytes(typingctx, a, b):
    """Byte-wise sum; the caller sees to it that none exceeds 255."""
    def generate(context, builder, signature, args):
        return builder.bitcast(builder.add(*(builder.bitcast(v, _BYTES) for v in args)), _WORDS)
    return words(words, words), generate


@intrinsic
def sum_bytes(typingctx, a):
    """The sum of the eight bytes of every word."""
    def generate(context, builder, signature, args):
        (v,) = args
        low = constant(_WORDS, 0x00FF00FF00FF00FF)
        v = builder.add(builder.and_(v, low), builder.and_(builder.lshr(v, constant(_WORDS, 8)), low))
        for shift in (32, 16):
            v = builder.add(v, builder.lshr(v, constant(_WORDS, shift)))
        return builder.trunc(builder.and_(v, constant(_WORDS, 0xFFFF)), _INTEGERS)
    return integers(words), generate


def _elementwise(name: str, doc: str):
    def made(typingctx, a, b):
        def generate(context, builder, signature, args):
            return getattr(builder, name)(*args)
        return integers(integers, integers), generate
    made.__doc__ = doc
    return intrinsic(made)


add = _elementwise("add", "Sum of two vectors of integers.")
subtract = _elementwise("sub", "Difference of two vectors of integers.")


@intrinsic
def shift_left(typingctx, a, by):
    """Every integer times 2^by."""
    def generate(context, builder, signature, args):
        return builder.shl(args[0], splat(builder, builder.trunc(args[1], I32), _INTEGERS))
    return integers(integers, address), generate


@intrinsic
def store_scaled(typingctx, out, at, value, scale, bias, factor):
    """out[at ...] = value * (scale * factor) + bias, BLOCK float32 each; out, scale and bias are addresses."""
    def generate(context, builder, signature, args):
        out, at, value, scale, bias, factor = args
        scale, bias = (load(builder, start, ir.Constant(I64, 0), _REALS) for start in (scale, bias))
        scale = builder.fmul(scale, splat(builder, factor, _REALS))
        y = builder.fadd(builder.fmul(builder.sitofp(value, _REALS), scale), bias)
        builder.store(y, pointer(builder, out, at, _REALS), align=4)
        return context.get_dummy_value()
    return types.void(address, address, integers, address, address, types.float32), generate


def _scalar(kind: types.Type, llvm_type: ir.Type) -> tuple:
    """Intrinsics that read and write one element of the array that starts at an address."""
    def read(typingctx, start, index):
        return kind(address, address), lambda context, builder, signature, args: load(builder, *args, llvm_type)

    def write(typingctx, start, index, value):
        def generate(context, builder, signature, args):
            builder.store(args[2], pointer(builder, *args[:2], llvm_type))
            return context.get_dummy_value()
        return types.void(address, address, kind), generate
    return intrinsic(read), intrinsic(write)


load_float, store_float = _scalar(types.float32, F32)
load_word, store_word = _scalar(types.uint64, I64)
load_index, _ = _scalar(types.intp, I64)
