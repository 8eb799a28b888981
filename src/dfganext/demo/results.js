// The slider of each heat map, links within the page, and the status line.
let strength = 60;  // percent, as in the template
const apply = (slider) => {
  slider.closest(".df-pictures").querySelector(".df-heat").style.opacity = slider.value / 100;
};

element.addEventListener("input", (event) => {
  if (!event.target.matches(".df-slider input")) return;
  strength = event.target.value;
  apply(event.target);
});

watch("value", () => {
  element.querySelectorAll(".df-slider input").forEach((slider) => {
    slider.value = strength;  // new results begin with the strength that was chosen last
    apply(slider);
  });
  const status = document.querySelector(".df-status");
  const results = element.querySelector(".df-results");
  if (!status || !results) return;
  status.textContent = results.dataset.summary;  // read aloud; the heading shows it
  status.classList.add("df-hidden");
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-target]");
  const target = link && document.getElementById(link.dataset.target);
  if (!target) return;
  event.preventDefault();  // with the page's base address, the link would load the page again
  target.querySelector("button.label-wrap:not(.open)")?.click();  // opens the model card
  target.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  target.focus({ preventScroll: true });
});
