"""The built-in image model: emoji of five freely licensed sets, and a small Stable-Diffusion-layout pipeline that draws them."""
