// One layer's weights in the order in which the kernels read them.

// Values per output channel, zeros added until they fill the vectors.
function filled(values) {
  const padded = new Float32Array(Math.ceil(values.length / BLOCK) * BLOCK);
  padded.set(values);
  return padded;
}

// Where a pass reads and writes.
function geometry(from, output, {stride, spread, dy, dx}) {
  const side = output.side / spread;
  return {input: from.at, inputPixel: stride * from.pixel, inputRow: stride * from.row, height: side, width: side,
          output: output.at + dy * output.row + dx * output.pixel, outputPixel: spread * output.pixel,
          outputRow: spread * output.row};
}

// Float weights, scales multiplied in: blocks of eight output channels, the last of four if they do not come out even.
function dense(memory, {outputs, inputs, weight, scale}, {taps}) {
  const padded = Math.ceil(outputs / BLOCK) * BLOCK, values = new Float32Array(padded * taps.length * inputs);
  let at = 0;
  for (let first = 0; first < padded; first += 8) {
    for (const {k} of taps) {
      for (let i = 0; i < inputs; i++) {
        for (let o = first; o < Math.min(first + 8, padded); o++, at++) {
          if (o < outputs) values[at] = weight(o, i, k) * (scale ? scale[o] : 1);
        }
      }
    }
  }
  return {weights: memory.put(values), run: inputs};
}

// 1-bit weights, 32 input channels in a word, in blocks of four output channels; and what `xnor` needs besides.
function binary(memory, layer, pass, side) {
  const {outputs, inputs, weight} = layer, run = Math.ceil(inputs / 32);
  const words = new Uint32Array(outputs * pass.taps.length * run);
  let at = 0;
  for (let first = 0; first < outputs; first += BLOCK) {
    for (const {k} of pass.taps) {
      for (let word = 0; word < run; word++) {
        for (let o = first; o < first + BLOCK; o++, at++) {
          for (let i = 32 * word; i < Math.min(32 * word + 32, inputs); i++) {
            if (weight(o, i, k) > 0) words[at] |= 1 << (i & 31);
          }
        }
      }
    }
  }
  return {weights: memory.put(words), run, scale: memory.putFloats(layer.scale),
          mapFactor: (layer.transposed ? 4 : 1) / layer.taps, ...borders(memory, layer, pass, side)};
}

// Beyond the border there is nothing to multiply, but `xnor` meets zero bits there.  Pixels are of one kind if the same
// taps of theirs lie beyond it; for each kind, what the count of differing bits has to be taken twice from.
function borders(memory, {outputs, inputs, weight}, {taps, stride, spread}, side) {
  const count = side / stride, kinds = new Map(), ofPixel = [], counts = [];
  const inside = (i) => i >= 0 && i < side;
  const ones = taps.map(({k}) => Float32Array.from({length: outputs}, (_, o) => {
    let sum = 0;
    for (let i = 0; i < inputs; i++) sum += weight(o, i, k) > 0;
    return sum;
  }));
  for (let y = 0; y < count; y++) {
    for (let x = 0; x < count; x++) {
      const within = taps.map(({dy, dx}) => inside(y * stride + dy) && inside(x * stride + dx)), kind = within.join();
      if (!kinds.has(kind)) {
        kinds.set(kind, kinds.size);
        for (let o = 0; o < outputs; o++) {
          counts.push(within.reduce((sum, is, tap) => sum + (is ? inputs : 2 * ones[tap][o]), 0));
        }
      }
      ofPixel.push(kinds.get(kind));
    }
  }
  return {kinds: memory.put(Uint32Array.from(ofPixel)), counts: memory.putFloats(counts)};
}
