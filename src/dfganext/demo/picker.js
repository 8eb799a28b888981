// Collects images that are chosen, dropped or pasted, uploads them, and submits their names and paths.
const input = element.querySelector("input[type=file]");
const stability = element.querySelector(".df-stability");
const status = element.querySelector(".df-status");
let images = [];

function say(text) {
  status.textContent = text;
  status.classList.remove("df-hidden");
}

async function sent(file) {
  if (file.size > props.max_bytes) return { name: file.name, too_large: true };
  try {
    // the path of an upload depends on its content and name: with a random name, nobody else's upload has the same path
    const { path } = await upload(new File([file], crypto.randomUUID()));
    return { name: file.name, path };
  } catch (error) {
    return { name: file.name, failed: true };
  }
}

async function submit() {
  if (!images.length) return;
  if (images.length > props.max_files) {
    say(`${images.length} images are more than ${props.max_files}: choose fewer, or use dfganext predict.`);
    return;
  }
  const files = [];
  for (const file of images) {
    say(`Reading image ${files.length + 1} of ${images.length} …`);
    files.push(await sent(file));
  }
  say(`Predicting ${images.length === 1 ? "1 image" : `${images.length} images`} …`);
  props.value = { files, stability: stability.checked, request: crypto.randomUUID() };
  trigger("submit");
}

function take(files) {
  images = [...files];
  submit();
}

input.addEventListener("change", () => {
  take(input.files);
  input.value = "";  // so that the same file can be chosen again
});
stability.addEventListener("change", submit);

document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) take(event.clipboardData.files);
});
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0;
const highlight = () => document.body.classList.toggle("df-dragging", depth > 0);
document.addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; highlight(); } });
document.addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth = Math.max(0, depth - 1); highlight(); } });
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  depth = 0;
  highlight();
  take(event.dataTransfer.files);
});
