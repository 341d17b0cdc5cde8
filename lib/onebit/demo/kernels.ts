// The arithmetic of the demo: SIMD WebAssembly, written in AssemblyScript, compiled by `make demo`.
//
// An image is a frame: pixels in rows, channels of a pixel side by side (a multiple of 4 of them), zeros all around.
// Addresses and strides count bytes.  A layer reads, for each output pixel, the same few places around one input pixel.

/** One layer as the driver (network.js) writes it down; all fields are 32 bits. */
@unmanaged class Plan {
  input: u32; //        the input pixel of the first output pixel
  inputPixel: u32; //   from the input of one output pixel to that of its neighbour
  inputRow: u32; //     the same, downwards
  taps: u32; //         addresses of the places read, relative to the input pixel (i32)
  tapCount: u32;
  run: u32; //          values at each place: floats, or words of 32 signs
  weights: u32; //      [block of output channels][tap][value][channel of the block]
  scale: u32; //        per output channel; `xnor` only
  bias: u32; //         per output channel
  output: u32;
  outputPixel: u32;
  outputRow: u32;
  residual: u32; //     added to the output; 0: nothing is
  residualPixel: u32;
  residualRow: u32;
  height: u32; //       of the output;  width: at least 4
  width: u32;
  channels: u32; //     of the output, a multiple of 4
  kinds: u32; //        per output pixel, which row of `counts` it takes (u32); `xnor` only
  counts: u32; //       products in reach of a pixel, plus twice the 1-bits of weights beyond the border (f32 rows)
  mapFactor: f32; //    weight of each place in the mean magnitude
}

/** Output of one pixel for four channels: the sum, its bias, and what is added to it. */
// @ts-ignore: decorator
@inline function finish(plan: Plan, sum: v128, x: u32, y: u32, channel: u32): void {
  let result = f32x4.add(sum, v128.load(plan.bias + channel * 4));
  if (plan.residual) {
    const at = plan.residual + y * plan.residualRow + x * plan.residualPixel + channel * 4;
    result = f32x4.add(result, v128.load(at));
  }
  v128.store(plan.output + y * plan.outputRow + x * plan.outputPixel + channel * 4, result);
}

/** Any convolution of floats: four pixels times eight channels (or the last four) at a time. */
export function convolve(plan: Plan): void {
  const taps = plan.tapCount * plan.run * 4;
  for (let channel: u32 = 0; channel < plan.channels; channel += 8) {
    const wide = channel + 8 <= plan.channels;
    const weights = plan.weights + channel * taps;
    for (let y: u32 = 0; y < plan.height; y++) {
      for (let x: u32 = 0; x < plan.width; x += 4) {
        const from = min(x, plan.width - 4); // the last block may overlap the one before: it writes the same again
        if (wide) block8(plan, weights, from, y, channel);
        else block4(plan, weights, from, y, channel);
      }
    }
  }
}

function block8(plan: Plan, weights: u32, x: u32, y: u32, channel: u32): void {
  const step = plan.inputPixel, pixel = plan.input + y * plan.inputRow + x * step, run = plan.run * 4;
  let a0 = f32x4.splat(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  for (let tap = plan.taps, end = tap + plan.tapCount * 4; tap < end; tap += 4) {
    let p0 = pixel + load<u32>(tap), p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
    for (const stop = p0 + run; p0 < stop; p0 += 4, p1 += 4, p2 += 4, p3 += 4, weights += 32) {
      const v = v128.load(weights), w = v128.load(weights, 16);
      const x0 = v128.load_splat<f32>(p0), x1 = v128.load_splat<f32>(p1);
      a0 = f32x4.add(a0, f32x4.mul(x0, v));
      b0 = f32x4.add(b0, f32x4.mul(x0, w));
      a1 = f32x4.add(a1, f32x4.mul(x1, v));
      b1 = f32x4.add(b1, f32x4.mul(x1, w));
      const x2 = v128.load_splat<f32>(p2), x3 = v128.load_splat<f32>(p3);
      a2 = f32x4.add(a2, f32x4.mul(x2, v));
      b2 = f32x4.add(b2, f32x4.mul(x2, w));
      a3 = f32x4.add(a3, f32x4.mul(x3, v));
      b3 = f32x4.add(b3, f32x4.mul(x3, w));
    }
  }
  finish(plan, a0, x, y, channel);
  finish(plan, a1, x + 1, y, channel);
  finish(plan, a2, x + 2, y, channel);
  finish(plan, a3, x + 3, y, channel);
  finish(plan, b0, x, y, channel + 4);
  finish(plan, b1, x + 1, y, channel + 4);
  finish(plan, b2, x + 2, y, channel + 4);
  finish(plan, b3, x + 3, y, channel + 4);
}

function block4(plan: Plan, weights: u32, x: u32, y: u32, channel: u32): void {
  const step = plan.inputPixel, pixel = plan.input + y * plan.inputRow + x * step, run = plan.run * 4;
  let a0 = f32x4.splat(0), a1 = a0, a2 = a0, a3 = a0;
  for (let tap = plan.taps, end = tap + plan.tapCount * 4; tap < end; tap += 4) {
    let p0 = pixel + load<u32>(tap), p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
    for (const stop = p0 + run; p0 < stop; p0 += 4, p1 += 4, p2 += 4, p3 += 4, weights += 16) {
      const v = v128.load(weights);
      a0 = f32x4.add(a0, f32x4.mul(v128.load_splat<f32>(p0), v));
      a1 = f32x4.add(a1, f32x4.mul(v128.load_splat<f32>(p1), v));
      a2 = f32x4.add(a2, f32x4.mul(v128.load_splat<f32>(p2), v));
      a3 = f32x4.add(a3, f32x4.mul(v128.load_splat<f32>(p3), v));
    }
  }
  finish(plan, a0, x, y, channel);
  finish(plan, a1, x + 1, y, channel);
  finish(plan, a2, x + 2, y, channel);
  finish(plan, a3, x + 3, y, channel);
}

/** 1-bit weights times 1-bit inputs: 128 products, four channels times 32 signs, in one XOR and one popcount.
 *
 *  output = (counts - 2 popcount) scale map + bias,   map = mapFactor * sum of the magnitudes at the taps
 *
 *  An input pixel is `run` words of signs and then the mean magnitude of its channels, as `pack` leaves it. */
export function xnor(plan: Plan): void {
  const words = plan.tapCount * plan.run * 4;
  for (let channel: u32 = 0; channel < plan.channels; channel += 4) {
    for (let y: u32 = 0; y < plan.height; y++) {
      for (let x: u32 = 0; x < plan.width; x += 4) {
        signs4(plan, plan.weights + channel * words, min(x, plan.width - 4), y, channel);
      }
    }
  }
}

function signs4(plan: Plan, weights: u32, x: u32, y: u32, channel: u32): void {
  const step = plan.inputPixel, pixel = plan.input + y * plan.inputRow + x * step, run = plan.run * 4;
  let s0 = i32x4.splat(0), s1 = s0, s2 = s0, s3 = s0; // popcounts, and their part that is still in bytes
  let c0 = s0, c1 = s0, c2 = s0, c3 = s0, added: u32 = 0;
  let m0: f32 = 0, m1: f32 = 0, m2: f32 = 0, m3: f32 = 0;
  for (let tap = plan.taps, end = tap + plan.tapCount * 4; tap < end; tap += 4) {
    let p0 = pixel + load<u32>(tap), p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
    for (const stop = p0 + run; p0 < stop; p0 += 4, p1 += 4, p2 += 4, p3 += 4, weights += 16) {
      const v = v128.load(weights);
      c0 = i8x16.add(c0, i8x16.popcnt(v128.xor(v128.load_splat<u32>(p0), v)));
      c1 = i8x16.add(c1, i8x16.popcnt(v128.xor(v128.load_splat<u32>(p1), v)));
      c2 = i8x16.add(c2, i8x16.popcnt(v128.xor(v128.load_splat<u32>(p2), v)));
      c3 = i8x16.add(c3, i8x16.popcnt(v128.xor(v128.load_splat<u32>(p3), v)));
    }
    m0 += load<f32>(p0);
    m1 += load<f32>(p1);
    m2 += load<f32>(p2);
    m3 += load<f32>(p3);
    added += plan.run;
    if (added + plan.run > 31 || tap + 4 == end) { // a byte holds 31 times 8
      s0 = i32x4.add(s0, widened(c0));
      s1 = i32x4.add(s1, widened(c1));
      s2 = i32x4.add(s2, widened(c2));
      s3 = i32x4.add(s3, widened(c3));
      c0 = c1 = c2 = c3 = i32x4.splat(0);
      added = 0;
    }
  }
  finish(plan, scaled(plan, s0, m0, x, y, channel), x, y, channel);
  finish(plan, scaled(plan, s1, m1, x + 1, y, channel), x + 1, y, channel);
  finish(plan, scaled(plan, s2, m2, x + 2, y, channel), x + 2, y, channel);
  finish(plan, scaled(plan, s3, m3, x + 3, y, channel), x + 3, y, channel);
}

/** Four sums of four bytes. */
// @ts-ignore: decorator
@inline function widened(bytes: v128): v128 {
  return i32x4.extadd_pairwise_i16x8_u(i16x8.extadd_pairwise_i8x16_u(bytes));
}

// @ts-ignore: decorator
@inline function scaled(plan: Plan, popcount: v128, magnitudes: f32, x: u32, y: u32, channel: u32): v128 {
  const kind = load<u32>(plan.kinds + (y * plan.width + x) * 4);
  const counts = v128.load(plan.counts + (kind * plan.channels + channel) * 4);
  const product = f32x4.sub(counts, f32x4.convert_i32x4_s(i32x4.shl(popcount, 1)));
  const scale = v128.load(plan.scale + channel * 4);
  return f32x4.mul(f32x4.mul(product, scale), f32x4.splat(magnitudes * plan.mapFactor));
}

/** Signs of a frame's pixels, 32 channels in a word (1: not negative), then their mean magnitude, into another. */
export function pack(
  input: u32, inputPixel: u32, inputRow: u32, output: u32, outputPixel: u32, outputRow: u32, side: u32, channels: u32,
): void {
  const zero = f32x4.splat(0);
  for (let y: u32 = 0; y < side; y++) {
    for (let x: u32 = 0; x < side; x++) {
      const from = input + y * inputRow + x * inputPixel;
      let to = output + y * outputRow + x * outputPixel, word: u32 = 0, sum = zero;
      for (let c: u32 = 0; c < channels; c += 4) {
        const v = v128.load(from + c * 4);
        sum = f32x4.add(sum, f32x4.abs(v));
        word |= i32x4.bitmask(f32x4.ge(v, zero)) << (c & 31);
        if ((c & 31) == 28 || c + 4 == channels) {
          store<u32>(to, word);
          to += 4;
          word = 0;
        }
      }
      const total = f32x4.extract_lane(sum, 0) + f32x4.extract_lane(sum, 1)
        + f32x4.extract_lane(sum, 2) + f32x4.extract_lane(sum, 3);
      store<f32>(to, total / <f32>channels);
    }
  }
}

/** SiLU(x scale + shift), a batch norm and what follows it, from one frame to another. */
export function activate(
  input: u32, inputPixel: u32, inputRow: u32, output: u32, outputPixel: u32, outputRow: u32, side: u32, channels: u32,
  scale: u32, shift: u32,
): void {
  for (let y: u32 = 0; y < side; y++) {
    for (let x: u32 = 0; x < side; x++) {
      const from = input + y * inputRow + x * inputPixel, to = output + y * outputRow + x * outputPixel;
      for (let c: u32 = 0; c < channels * 4; c += 16) {
        const z = f32x4.add(f32x4.mul(v128.load(from + c), v128.load(scale + c)), v128.load(shift + c));
        v128.store(to + c, f32x4.div(z, f32x4.add(f32x4.splat(1), exp(f32x4.neg(z)))));
      }
    }
  }
}

/** e^x to about 2^-23 of itself, for x in +-87: x = n ln 2 + r, and a polynomial in r (Cephes, expf). */
// @ts-ignore: decorator
@inline function exp(v: v128): v128 {
  const x = f32x4.max(f32x4.min(v, f32x4.splat(87)), f32x4.splat(-87));
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504)));
  // ln 2 in two parts, so that n times the first is exact
  const r = f32x4.sub(f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375))), f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let p = f32x4.splat(1.9875691500e-4);
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), f32x4.splat(1));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}
