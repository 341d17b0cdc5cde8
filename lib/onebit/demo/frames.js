// What the kernels work on: frames of pixels in WebAssembly memory, and the places a convolution reads.

const BLOCK = 4; // channels that a vector holds

class Memory {
  constructor(memory) {
    this.memory = memory;
    this.end = 1024; // 0 says "none" to the kernels
  }

  // Address of n bytes of zeros; a multiple of 16, as vectors like it.
  take(n) {
    const at = this.end;
    this.end += (n + 15) & ~15;
    const missing = this.end - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
    return at;
  }

  put(values) {
    const at = this.take(values.byteLength);
    new Uint8Array(this.memory.buffer).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
    return at;
  }

  putFloats(values) {
    return this.put(Float32Array.from(values));
  }

  floats(at, n) {
    return new Float32Array(this.memory.buffer, at, n); // not kept: growing the memory takes it away
  }

  // side x side pixels of so many 32-bit values in a border of zeros; `at` is the address of the first pixel proper.
  frame(side, channels) {
    const pixel = 4 * channels, row = pixel * (side + 2);
    return {at: this.take(row * (side + 2)) + row + pixel, pixel, row, side, channels};
  }
}

// Some channels of a frame, as a frame that shares its memory.
const channelsOf = (frame, first, channels) => ({...frame, at: frame.at + 4 * first, channels});

// The passes of a layer over its input: one, or for a transposed layer (4 x 4, stride 2, padding 1) one for each of the
// four positions of an output pixel.  A tap {k, dy, dx}: weight k meets the input pixel dy, dx from the one below it.
function passes({side, transposed}, stride) {
  const square = (n, make) => Array.from({length: n * n}, (_, i) => make(Math.floor(i / n), i % n));
  if (!transposed) {
    const padding = Math.floor((side - 1) / 2);
    const taps = square(side, (y, x) => ({k: y * side + x, dy: y - padding, dx: x - padding}));
    return [{taps, stride, spread: 1, dy: 0, dx: 0}];
  }
  return square(2, (dy, dx) => {
    const taps = square(2, (i, j) => {
      const y = dy ? i : -i, x = dx ? j : -j; // in 2 (row + y) + k - 1 = 2 row + dy, what the layer sends where
      return {k: (dy + 1 - 2 * y) * side + dx + 1 - 2 * x, dy: y, dx: x};
    });
    return {taps, stride: 1, spread: 2, dy, dx};
  });
}
