// The deck: every slide as large as its content allows, nothing cut, nothing loaded later.

const SIZES = [1.5, 1.35, 1.2, 1.1, 1, 0.9, 0.8, 0.7];

// Show the slide at that size. Code is made smaller than the rest, where its longest line asks for it.
function show(slide, size) {
  slide.style.setProperty("--size", size);
  slide.style.setProperty("--code", 1);
  slide.classList.toggle("labkit-unwrapped", size > 1);
  const code = Math.min(1, ...own(slide, "pre").map((part) => part.clientWidth / part.scrollWidth));
  if (code < 1) slide.style.setProperty("--code", Math.max(code - 0.01, Math.min(1 / size, 0.8)));
}

// The parts of a slide, without the speaker's notes.
function own(slide, selector) {
  return [...slide.querySelectorAll(selector)].filter((part) => !part.closest("aside") && !part.ownerSVGElement);
}

// Does all of the slide's content have room on the screen, with no line to be scrolled sideways?
function hasRoom(slide, height) {
  if (slide.scrollHeight > height) return false;
  const right = slide.getBoundingClientRect().right + 1;
  return own(slide, "pre, table, img, svg, math, .jp-OutputArea-output, .jp-MarkdownOutput").every(
    (part) => part.getBoundingClientRect().right <= right && part.scrollWidth <= part.clientWidth + 1,
  );
}

// The largest size at which it has. An output's lines break only where they must at size 1, as in the notebook.
// Where none is small enough, the slide is as tall as at size 1, and can be scrolled.
function fit(slide) {
  const {height} = Reveal.getConfig();
  slide.classList.add("labkit-slide");
  slide.classList.remove("labkit-tall");
  const size = SIZES.find((one) => {
    show(slide, one);
    return hasRoom(slide, height);
  });
  if (size === undefined) show(slide, 1);
  slide.classList.toggle("labkit-tall", size === undefined);
  slide.dataset.size = size ?? 1;
  Reveal.layout();
}

// On a slide that is taller than the screen a key goes on reading first, and to the next slide from its end.
function onwards(move) {
  return (event) => {
    if (event?.shiftKey) return Reveal.prev();
    const slide = Reveal.getCurrentSlide();
    const left = slide.scrollHeight - slide.clientHeight - slide.scrollTop;
    if (left > 1) slide.scrollBy(0, 0.8 * slide.clientHeight);
    else move();
  };
}

// The speaker has a slide's notes from its beginning: reveal.js shows those in a fragment with that fragment only.
function freeNotes() {
  for (const note of document.querySelectorAll(".fragment aside.notes")) note.closest("section").append(note);
}

window.addEventListener("load", async () => {
  freeNotes();
  setFormulas();
  await drawDiagrams();
  const now = () => fit(Reveal.getCurrentSlide());
  Reveal.on("ready", now);
  Reveal.on("slidechanged", now);
  Reveal.on("pdf-ready", () => Reveal.getSlides().forEach(fit));
  await Reveal.initialize({
    width: 1280,
    height: 720,
    margin: 0.02,
    center: true,
    hash: true,
    controls: false,
    slideNumber: "c/t",
    transition: "none",
    keyboard: {32: onwards(() => Reveal.next()), 34: onwards(() => Reveal.next()), 40: onwards(() => Reveal.down())},
    plugins: [RevealNotes],
  });
});
