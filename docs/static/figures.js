// Draws the notebooks' figures from the data that docs/conf.py left in the page.
for (const place of document.querySelectorAll(".figure")) {
  const { data, layout, config } = JSON.parse(place.querySelector("script").textContent);
  Plotly.newPlot(place, data, layout, { ...config, responsive: true });
}
