// The noise that the library starts image `number` of a seed from (sampling.generators): numpy's SeedSequence names a
// state of torch's generator, a Mersenne Twister, whose numbers Box and Muller's formula makes normal.

// First 32-bit word of numpy.random.SeedSequence([seed, number]): the only bits that torch seeds its generator with.
function seedWord(seed, number) {
  const shifted = (value) => (value ^ (value >>> 16)) >>> 0;
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    return shifted(Math.imul(value, constant));
  };
  const pool = [seed, number, 0, 0].map(hash);
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from === to) continue;
      pool[to] = shifted(Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, hash(pool[from])));
    }
  }
  return shifted(Math.imul(pool[0] ^ 0x8b51f9dd, Math.imul(0x8b51f9dd, 0x58f38ded)));
}

// MT19937: a function that returns the next 32-bit number.
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;
  const refill = () => {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };
  return () => {
    if (at === 624) refill();
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

// What torch.randn(n) draws, for n a multiple of 16: 24-bit uniform numbers, the first eight of every sixteen radii.
function noise(seed, number, n) {
  const next = mersenneTwister(seedWord(seed, number));
  const uniform = Float32Array.from({length: n}, () => (next() & 0xffffff) / 0x1000000);
  return uniform.map((_, i) => {
    const first = i - (i % 16) + (i % 8);
    const radius = Math.sqrt(-2 * Math.log(1 - uniform[first]));
    const angle = 2 * Math.PI * uniform[first + 8];
    return radius * (i % 16 < 8 ? Math.cos(angle) : Math.sin(angle));
  });
}
