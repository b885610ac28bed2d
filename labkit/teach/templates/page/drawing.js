// Diagrams and formulas, drawn before anything is laid out.

if (window.mermaid) mermaid.initialize({startOnLoad: false});  // it would begin by itself, too early

// Mermaid measures what it draws. A slide that is not shown has no size, so each diagram is drawn at the end of
// the body, where it has one, and then put in its place. One that cannot be drawn stays as text, and is marked.
async function drawDiagrams() {
  const texts = [...document.querySelectorAll("pre.mermaid")];
  if (!texts.length || !window.mermaid) return;
  const font = getComputedStyle(document.body).getPropertyValue("--jp-ui-font-family");
  mermaid.initialize({startOnLoad: false, theme: "neutral", fontFamily: font});
  for (const [number, text] of texts.entries()) {
    try {
      const {svg} = await mermaid.render(`labkit-diagram-${number}`, text.textContent.trim());
      const box = document.createElement("div");
      box.className = "labkit-diagram";
      box.innerHTML = svg;
      text.replaceWith(box);
    } catch (error) {
      text.classList.add("labkit-undrawn");
      text.title = String(error);
    }
  }
}

// MathML: the browser draws it by itself, without fonts or style sheets of a library.
function setFormulas() {
  if (!window.renderMathInElement) return;
  const delimiters = [
    {left: "$$", right: "$$", display: true},
    {left: "$", right: "$", display: false},
  ];
  for (const text of document.querySelectorAll(".jp-MarkdownOutput"))
    renderMathInElement(text, {delimiters, output: "mathml", throwOnError: false});
}
