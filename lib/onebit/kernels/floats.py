"""Eight floats at a time: what packing does to activations before they are bits, and sums of products."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vectors import F32, I1, I8, I32, I64, Vector, address, constant, intrinsic_call, load, pointer, splat

FLOATS = 8  # the comparison of eight floats is one byte of a word
_EIGHT, _EIGHT_INTEGERS = ir.VectorType(F32, FLOATS), ir.VectorType(I32, FLOATS)
eight = Vector("floats", _EIGHT)  # 8 x float32
codes = Vector("codes", _EIGHT_INTEGERS)  # 8 x int32


@intrinsic
def load_floats(typingctx, start, index):
    """Eight consecutive elements of the float32 array that starts at an address."""
    def generate(context, builder, signature, args):
        return load(builder, *args, _EIGHT)
    return eight(address, address), generate


@intrinsic
def store_floats(typingctx, start, index, a):
    """Write eight floats at consecutive elements of the float32 array that starts at an address."""
    def generate(context, builder, signature, args):
        builder.store(args[2], pointer(builder, *args[:2], _EIGHT), align=4)
        return context.get_dummy_value()
    return types.void(address, address, eight), generate


@intrinsic
def zero_floats(typingctx):
    """Eight zeros."""
    return eight(), lambda context, builder, signature, args: constant(_EIGHT, 0.0)


@intrinsic
def affine(typingctx, a, times, plus):
    """a times + plus."""
    def generate(context, builder, signature, args):
        return builder.fadd(builder.fmul(*args[:2]), args[2])
    return eight(eight, eight, eight), generate


@intrinsic
def add_product(typingctx, total, a, b):
    """total + a b, in one instruction where the processor has it."""
    def generate(context, builder, signature, args):
        total, a, b = args
        return builder.fadd(total, builder.fmul(a, b, flags=("contract",)), flags=("contract",))
    return eight(eight, eight, eight), generate


# exp on [-ln 2 / 2, ln 2 / 2]: Cephes' expf, whose relative error is below 2e-7
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)
_LN2 = (0.693359375, -2.12194440e-4)  # in two parts, the first exact in few bits


def _exp(builder, a):
    """e^a for a within +-87, as 2^n e^r."""
    n = intrinsic_call(builder, "rint", _EIGHT, builder.fmul(a, constant(_EIGHT, 1.44269504088896341)))
    for part in _LN2:
        a = builder.fsub(a, builder.fmul(n, constant(_EIGHT, part)))
    value = constant(_EIGHT, _EXP[0])
    for coefficient in _EXP[1:]:
        value = builder.fadd(builder.fmul(value, a), constant(_EIGHT, coefficient))
    power = builder.add(builder.fptosi(n, _EIGHT_INTEGERS), constant(_EIGHT_INTEGERS, 127))
    return builder.fmul(value, builder.bitcast(builder.shl(power, constant(_EIGHT_INTEGERS, 23)), _EIGHT))


@intrinsic
def silu(typingctx, a):
    """a / (1 + e^-a)."""
    def generate(context, builder, signature, args):
        (a,), edge = args, constant(_EIGHT, 87.0)
        low = builder.fneg(edge)
        inside = builder.select(builder.fcmp_ordered("<", a, low), low, a)
        inside = builder.select(builder.fcmp_ordered(">", inside, edge), edge, inside)
        return builder.fdiv(a, builder.fadd(constant(_EIGHT, 1.0), _exp(builder, builder.fneg(inside))))
    return eight(eight), generate


@intrinsic
def add_magnitudes(typingctx, total, a):
    """total + |a|."""
    def generate(context, builder, signature, args):
        return builder.fadd(args[0], intrinsic_call(builder, "fabs", _EIGHT, args[1]))
    return eight(eight, eight), generate


@intrinsic
def sum_floats(typingctx, a):
    """The sum of the eight, halves first."""
    def generate(context, builder, signature, args):
        (v,), n = args, FLOATS // 2
        while n:
            indices = ir.Constant(ir.VectorType(I32, FLOATS), [(i + n) % FLOATS for i in range(FLOATS)])
            v, n = builder.fadd(v, builder.shuffle_vector(v, v, indices)), n // 2
        return builder.extract_element(v, ir.Constant(I32, 0))
    return types.float32(eight), generate


def _byte(builder, bits):
    """Eight booleans as the low byte of a word."""
    return builder.zext(builder.bitcast(bits, I8), I64)


@intrinsic
def not_below(typingctx, a, b):
    """One bit per float: a < b is not so (NaN counts as +1, as in `quantizers.sign`)."""
    def generate(context, builder, signature, args):
        return _byte(builder, builder.fcmp_unordered(">=", *args))
    return types.uint64(eight, eight), generate


@intrinsic
def to_codes(typingctx, a, shift, times, over, low, high):
    """clip((a - shift) times / over, low, high) to the nearest integer, ties to even."""
    def generate(context, builder, signature, args):
        a, shift, *scalars = args
        times, over, low, high = (splat(builder, scalar, _EIGHT) for scalar in scalars)
        ratio = builder.fdiv(builder.fmul(builder.fsub(a, shift), times), over)
        ratio = builder.select(builder.fcmp_ordered(">", ratio, low), ratio, low)  # also where it is NaN
        ratio = builder.select(builder.fcmp_ordered("<", ratio, high), ratio, high)
        return builder.fptosi(intrinsic_call(builder, "rint", _EIGHT, ratio), _EIGHT_INTEGERS)
    real = types.float32
    return codes(eight, eight, real, real, real, real), generate


@intrinsic
def plane(typingctx, a, offset, bit):
    """One bit per code: that bit of code + offset."""
    def generate(context, builder, signature, args):
        a, *scalars = args
        offset, bit = (splat(builder, builder.trunc(scalar, I32), _EIGHT_INTEGERS) for scalar in scalars)
        shifted = builder.lshr(builder.add(a, offset), bit)
        return _byte(builder, builder.trunc(shifted, ir.VectorType(I1, FLOATS)))
    return types.uint64(codes, address, address), generate
