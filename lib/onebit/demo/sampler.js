// DDIM, eta = 0 (arXiv:2010.02502 Eq. 12), on a grid of [timestep, alpha_bar]; the last step goes to x_0.
function* denoise(network, start, grid) {
  let x = start;
  for (const [i, [timestep, alphaBar]] of grid.entries()) {
    const next = i + 1 < grid.length ? grid[i + 1][1] : 1, eps = network.predict(x, timestep);
    const scale = Math.sqrt(next / alphaBar), weight = Math.sqrt(1 - next) - scale * Math.sqrt(1 - alphaBar);
    x = x.map((value, pixel) => scale * value + weight * eps[pixel]);
    yield x;
  }
}
