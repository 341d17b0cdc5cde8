// Reads the study's packed files (onebit.packing): safetensors, a JSON in whose metadata says what is packed and how.

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

class PackedFile {
  constructor(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const length = Number(view.getBigUint64(0, true));
    this.tensors = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    this.data = bytes.subarray(8 + length);
    this.size = bytes.length;
    this.packed = JSON.parse(this.tensors.__metadata__["onebit-packed"]);
    this.binaryInputs = this.packed.recipe.split(" ").includes("activations=xnor");
  }

  has(name) {
    return name in this.tensors;
  }

  bytes(name) {
    const [from, to] = this.tensors[name].data_offsets;
    return this.data.slice(from, to); // a copy: its first byte is aligned
  }

  floats(name) {
    const bytes = this.bytes(name);
    if (this.tensors[name].dtype === "F32") return new Float32Array(bytes.buffer);
    return Float32Array.from(new Uint16Array(bytes.buffer), halfToFloat);
  }

  // A convolution or linear layer: weight(output, input, tap) is +1 or -1 where the layer is binary, and waits for
  // scale[output]; elsewhere it is the weight itself and scale is null.  signs: the layer's input is binary too.
  layer(name, transposed = false) {
    const told = this.packed.layers[name];
    const shape = told ? told.shape : this.tensors[`${name}.weight`].shape;
    const [outputs, inputs] = transposed ? [shape[1], shape[0]] : shape;
    const side = shape.length > 2 ? shape[2] : 1, taps = side * side;
    const bias = this.has(`${name}.bias`) ? this.floats(`${name}.bias`) : new Float32Array(outputs);
    const common = {outputs, inputs, side, taps, bias, transposed, signs: Boolean(told) && this.binaryInputs};
    if (told) {
      const bits = this.bytes(`${name}.weight`), row = bits.length / outputs;
      const weight = (o, i, k) => ((bits[o * row + ((i * taps + k) >> 3)] >> ((i * taps + k) & 7)) & 1 ? 1 : -1);
      return {...common, weight, scale: this.floats(`${name}.scales`)};
    }
    const values = this.floats(`${name}.weight`);
    const weight = transposed ? (o, i, k) => values[(i * outputs + o) * taps + k]
                              : (o, i, k) => values[(o * inputs + i) * taps + k];
    return {...common, weight, scale: null};
  }
}
