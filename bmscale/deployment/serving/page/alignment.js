"use strict";

// The words of a text and of its translation, linked as /translate with `alignments: true` says.

const percent = (weight) => Math.round(100 * weight) + " %";
// The root, so that small weights can be told from none.
const shade = (element, weight) => element.style.setProperty("--weight", Math.sqrt(Math.min(1, weight)));
const made = (name, properties = {}, children = []) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

// (T, S) of a sentence; what was too small to be sent is 0.
function weightsOf({ source, target, links }) {
  const weights = target.map(() => source.map(() => 0));
  for (const [row, column, weight] of links) weights[row][column] = weight;
  return weights;
}

class Sentence {
  constructor(found, number, say) {
    this.say = say;
    const weights = weightsOf(found);
    // Of each side: its words, and how much each of them has to do with each of the other side.
    const sides = [
      { name: "Text", words: found.source, links: found.source.map((_, s) => weights.map((row) => row[s])) },
      { name: "Translation", words: found.target, links: weights },
    ];
    this.rows = sides.map((side, which) => ({ ...side, buttons: side.words.map((word, place) =>
      made("button", { type: "button", className: "word", textContent: word, tabIndex: which || place ? -1 : 0,
        onclick: () => this.show(which, place), onpointerenter: () => this.show(which, place),
        onfocus: () => this.show(which, place), onkeydown: (event) => this.move(event, which, place) })) }));
    const groups = this.rows.map((row) => {
      const group = made("div", { className: "words", role: "group", ariaLabel: `${row.name}, sentence ${number}` });
      group.append(made("span", { className: "side", textContent: row.name, ariaHidden: "true" }), ...row.buttons);
      return group;
    });
    this.element = made("div", { className: "sentence" }, [...groups, tableOf(found, weights)]);
  }

  // One tab stop a sentence: the arrow keys go to the words beside, and to those of the other side.
  move(event, which, place) {
    const own = this.rows[which].buttons;
    const next = { ArrowRight: own[place + 1], ArrowLeft: own[place - 1], Home: own[0], End: own[own.length - 1],
      [which ? "ArrowUp" : "ArrowDown"]: this.rows[1 - which].buttons[Math.max(0, this.strongest(which, place))],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    for (const { buttons } of this.rows) for (const button of buttons) button.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  strongest(which, place) {
    const links = this.rows[which].links[place];
    const most = Math.max(0, ...links);
    return most ? links.indexOf(most) : -1;
  }

  show(which, place) {
    this.clear();
    const { links, words, buttons } = this.rows[which];
    const other = this.rows[1 - which];
    buttons[place].classList.add("chosen");
    links[place].forEach((weight, at) => shade(other.buttons[at], weight));
    const strongest = this.strongest(which, place);
    if (strongest >= 0) other.buttons[strongest].classList.add("strongest");
    const found = links[place].map((weight, at) => [weight, other.words[at]]).filter(([weight]) => weight > 0)
      .sort(([one], [two]) => two - one).slice(0, 4).map(([weight, word]) => `${word} ${percent(weight)}`);
    this.say(`${words[place]}: ${found.join(", ") || "no word in particular"}`);
  }

  clear() {
    for (const { buttons } of this.rows) {
      for (const button of buttons) {
        button.classList.remove("chosen", "strongest");
        button.style.removeProperty("--weight");
      }
    }
  }
}

// Closed at first, and made when it is opened: a long sentence has thousands of cells.
function tableOf(found, weights) {
  const details = made("details", {}, [made("summary", { textContent: "As a table" })]);
  details.addEventListener("toggle", () => details.append(cellsOf(found, weights)), { once: true });
  return details;
}

function cellsOf({ source, target }, weights) {
  const cell = (weight) => {
    const element = made("td", { textContent: weight ? percent(weight) : "" });
    shade(element, weight);
    return element;
  };
  const head = made("tr", {}, [made("td"), ...source.map((word) => made("th", { scope: "col", textContent: word }))]);
  const rows = target.map((word, row) =>
    made("tr", {}, [made("th", { scope: "row", textContent: word }), ...weights[row].map(cell)]));
  const table = made("table", {}, [made("thead", {}, [head]), made("tbody", {}, rows)]);
  return made("div", { className: "scrolled", tabIndex: 0, role: "region", ariaLabel: "Weights" }, [table]);
}

// `found` is what the server answered: for each sentence its words and links, null where it cannot tell, and nothing at
// all from a server that does not know the field. Words go into the page as text, whatever they hold.
function showAlignment(found, { section, links, sentences }) {
  const say = (text) => (links.textContent = text);
  section.hidden = false;
  say("");
  const known = (found || []).filter((one) => one && one.source.length && one.target.length);
  const note = (text) => sentences.append(made("p", { className: "note", textContent: text }));
  sentences.replaceChildren(...known.map((one, place) => new Sentence(one, place + 1, say).element));
  const missing = (found || []).filter((one) => !one).length;
  if (!found) note("This server does not tell alignments.");
  else if (missing) {
    note(`The model cannot tell the alignment of ${missing} of ${found.length} sentences, which are longer than its ` +
      "positions.");
  } else if (!known.length) note("There are no words to align.");
}
