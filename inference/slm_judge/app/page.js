// The page: what is common, and the tabs Try, Settle and Where we stand. Texts are only ever shown
// as text: no HTML is made of strings anywhere.
import { annotate } from "./annotate.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties, `class` among them, and children: elements or texts. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

let version = null; // of the questions that this page asks

/** What the server answers; an error in its own words. */
export async function ask(name, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ version, ...body }),
  };
  let response;
  try {
    response = await fetch(`api/${name}`, request);
  } catch {
    throw new Error("The server does not answer. Is `slm-judge app` still running?");
  }
  const found = await response.json().catch(() => null);
  if (!response.ok || found === null) {
    throw new Error(found?.error ?? `The server failed (${response.status}).`);
  }
  return found;
}

/** Say something where it happened. */
export function say(place, text, bad = false) {
  place.textContent = text;
  place.className = bad ? "error" : "";
  place.setAttribute("role", bad ? "alert" : "status");
}

/** Do something, with `place` saying what goes wrong. */
export async function tried(place, work) {
  try {
    await work();
  } catch (error) {
    say(place, error.message, true);
  }
}

/** The texts of an item, each field under its name where there are several. */
export function texts(fields, state) {
  return fields.flatMap((field) => [
    ...(fields.length > 1 ? [h("h3", { dir: "auto" }, field)] : []),
    state[field]
      ? h("div", { className: "text", dir: "auto", tabIndex: 0, "aria-label": field,
                   role: "region" }, state[field])
      : h("div", { className: "text empty" }, "(empty)"),
  ]);
}

export const percent = (share) => `${(100 * share).toFixed(0)} %`;
/** A label in words: yes and no are true and false in tables. */
export const plain = (key, dimension) =>
  (dimension.type === "noul" ? { true: "yes", false: "no" }[key] : null) ?? key;
export const described = (option, dimension) => [
  h("b", { dir: "auto" }, plain(option.key, dimension)),
  option.description ? h("span", { dir: "auto" }, ` ${option.description}`) : null,
];

const number = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
const interval = (one) => one.low === null ? number(one.estimate)
  : `${number(one.estimate)} [${number(one.low)}, ${number(one.high)}]`;

function choices(select, pairs) {
  const kept = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => h("option", { value }, text)));
  if (pairs.some(([value]) => value === kept)) select.value = kept;
}

// --- tabs ---

const shown = {};

function tabs(names) {
  const open = () => {
    const asked = location.hash.slice(1);
    const name = names.includes(asked) ? asked : names[0];
    for (const section of document.querySelectorAll("[role=tabpanel]")) {
      const chosen = section.id === name;
      section.hidden = !chosen;
      $(`tab-${section.id}`).setAttribute("aria-selected", chosen);
      $(`tab-${section.id}`).tabIndex = chosen ? 0 : -1;
    }
    shown[name]?.();
  };
  const go = (name) => { // not by location.hash, which would take the focus away
    history.pushState(null, "", `#${name}`);
    $(`tab-${name}`).focus();
    open();
  };
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const name = tab.getAttribute("aria-controls");
    tab.hidden = !names.includes(name);
    tab.addEventListener("click", () => go(name));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) go(names[(names.indexOf(name) + move + names.length) % names.length]);
    });
  }
  addEventListener("popstate", open);
  open();
}

// --- Try ---

function tryOut(start) {
  const { fields, dimensions } = start.rubric;
  const boxes = fields.map((field) => h("textarea", { id: `field-${field}`, dir: "auto", rows: 6 }));
  $("try-fields").append(...fields.flatMap((field, i) => [
    h("label", { htmlFor: boxes[i].id, dir: "auto" }, field), boxes[i],
  ]));
  choices($("try-example"), [["", "choose one"], ...start.examples.map(
    (state, i) => [String(i), Object.values(state).join(" – ").slice(0, 60) || "(empty)"])]);
  $("try-example").addEventListener("change", (event) => {
    const state = start.examples[event.target.value];
    if (state) fields.forEach((field, i) => { boxes[i].value = state[field]; });
  });
  $("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const state = Object.fromEntries(fields.map((field, i) => [field, boxes[i].value]));
    const button = $("try-form").querySelector("button");
    if (button.getAttribute("aria-disabled")) return; // it stays where the focus is
    say($("try-said"), "The judge is reading …");
    $("try-answers").replaceChildren();
    button.setAttribute("aria-disabled", true);
    tried($("try-said"), async () => {
      const { answers } = await ask("try", { state, who: localStorage.annotator ?? "" });
      const problems = answers.filter((one) => one.problem);
      say($("try-said"), problems.length
        ? problems.map((one) => `${one.judge} cannot judge this: ${one.problem}.`).join(" ")
        : answers.map((one) => `${one.judge}: ${one.seconds.toFixed(2)} s`).join(", "),
      problems.length > 0);
      const said = answers.filter((one) => !one.problem);
      if (said.length) $("try-answers").append(...dimensions.map((d) => verdict(d, said, start)));
    }).finally(() => button.removeAttribute("aria-disabled"));
  });
  $("rubric").append(
    h("h2", {}, "The rubric"), h("p", { dir: "auto" }, start.rubric.instructions),
    ...dimensions.flatMap((d) => [
      h("h3", {}, d.name), h("p", { dir: "auto" }, d.instructions),
      h("ul", {}, d.options.map((option) => h("li", {}, described(option, d)))),
    ]));
}

function verdict(dimension, answers, start) {
  const found = answers.map((one) => one.dimensions[dimension.name]);
  const differ = new Set(found.map((one) => one.label)).size > 1;
  const below = (one) => one.label !== null && start.review_below !== null
    && Math.round(100 * one.confidence) / 100 < start.review_below; // as `annotate` compares them
  const rows = dimension.options.map((option) => h("tr", {},
    h("th", { scope: "row" }, described(option, dimension)),
    ...found.map((one) => {
      const bar = h("div", { "aria-hidden": "true" });
      bar.style.width = `${100 * one.probabilities[option.key]}%`;
      return h("td", { className: one.label === option.key ? "share chosen" : "share" },
        percent(one.probabilities[option.key]) + (one.label === option.key ? " ✓" : ""), bar);
    })));
  const heads = answers.map((one, i) => h("th", { scope: "col" },
    answers.length > 1 ? `${one.judge}: ` : "", h("bdi", {},
      found[i].label === null ? "not asked" : plain(found[i].label, dimension)),
    found[i].label === null ? null : ` (${percent(found[i].confidence)} sure)`,
    below(found[i]) ? h("div", { className: "mark" }, "a person should look") : null));
  return h("div", { className: "card", "data-dimension": dimension.name },
    h("table", { className: "shares" },
      h("caption", {}, dimension.name, differ ? h("span", { className: "mark" }, " – they differ")
        : null),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Answer"), ...heads)),
      h("tbody", {}, rows)));
}

// --- Settle ---

function settling(start) {
  let most = 20;
  $("settle-task").hidden = !start.rubric.instructions;
  $("settle-text").textContent = start.rubric.instructions;
  choices($("settle-dimension"), [["", "all"], ...start.rubric.dimensions.map((d) => [d.name, d.name])]);
  const load = () => tried($("settle-said"), async () => {
    const found = await ask("settling", {
      dimension: $("settle-dimension").value, annotator: $("settle-annotator").value,
      settled: $("settle-settled").checked, most, who: localStorage.annotator ?? "",
    });
    choices($("settle-annotator"), [["", "all"], ...found.annotators.map((name) => [name, name])]);
    say($("settle-said"), found.total ? `${found.total} disagreements, worst first.`
      : "Nothing differs here.");
    $("settle-items").replaceChildren(...found.items.map((row) => difference(row, start)));
    $("settle-more").hidden = found.total <= most;
  });
  for (const id of ["settle-dimension", "settle-annotator", "settle-settled"]) {
    $(id).addEventListener("change", load);
  }
  $("settle-more").addEventListener("click", () => { most += 20; load(); });
  $("settle-form").addEventListener("submit", (event) => event.preventDefault());
  shown.settle = () => { $("settle-who").value ||= localStorage.annotator ?? ""; load(); };
}

let cards = 0;

function difference(row, start) {
  const dimension = start.rubric.dimensions.find((d) => d.name === row.dimension);
  const name = `settle-${cards++}`;
  const said = h("p", { role: "status" });
  const comment = h("input", { id: `${name}-comment`, dir: "auto", maxLength: 2000,
                               value: row.settled?.comment ?? "" });
  const closed = () => row.settled?.option
    ? `Settled as ${plain(row.settled.option, dimension)} by ${row.settled.who}.`
    : row.settled ? `Left open by ${row.settled.who}; the comment is kept.` : "";
  say(said, closed());
  const form = h("form", { "aria-label": `Settle ${row.dimension} of ${row.item}` },
    h("fieldset", {}, h("legend", { dir: "auto" }, dimension.instructions),
      dimension.options.map((option) => h("label", { className: "option" },
        h("input", { type: "radio", name, value: option.key,
                     checked: option.key === row.settled?.option }),
        h("span", {}, described(option, dimension)))),
      h("label", { className: "option" },
        h("input", { type: "radio", name, value: "", checked: !row.settled?.option }),
        h("span", {}, "left open"))),
    h("p", {}, h("label", { htmlFor: comment.id }, "Comment "), comment, " ",
      h("button", { className: "main" }, "Settle")), said);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const option = form.querySelector(":checked").value || null;
    if (option === null && !row.settled && !comment.value) {
      say(said, "Choose an answer, or write a comment.", true);
      return;
    }
    const who = $("settle-who").value;
    tried(said, async () => {
      await ask("settle", { item: row.item, dimension: row.dimension, option, who,
                            comment: comment.value });
      row.settled = { option, who };
      say(said, closed());
    });
  });
  const answers = Object.entries(row.people).map(([who, key]) => [
    who, key === null ? "cannot tell" : plain(key, dimension)]);
  if (row.judge) {
    answers.push([`the judge (${percent(row.judge[1])} sure)`, plain(row.judge[0], dimension)]);
  }
  return h("article", { className: "card", "data-item": row.item },
    h("h2", {}, `${row.dimension}, item `, h("bdi", {}, row.item)),
    ...texts(start.rubric.fields, row.state),
    h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Who"),
      h("th", { scope: "col" }, "Answer"))),
    h("tbody", {}, answers.map(([who, key]) => h("tr", {},
      h("th", { scope: "row" }, h("bdi", {}, who)), h("td", {}, h("bdi", {}, key)))))), form);
}

// --- Where we stand ---

function standing() {
  const load = () => tried($("standing-said"), async () => {
    say($("standing-said"), "Computing …");
    const width = Number($("width").value);
    const found = await ask("standing", { width });
    say($("standing-said"),
      `Krippendorff's alpha with 95 % intervals; 1 is full agreement, 0 chance. ${found.note}`);
    $("standing-dimensions").replaceChildren(...found.dimensions.map((one) => agreement(one, width)));
  });
  $("standing-form").addEventListener("submit", (event) => { event.preventDefault(); load(); });
  shown.standing = load;
}

function agreement(one, width) {
  const people = one.shared
    ? `Annotators among themselves: ${interval(one.people)}, on ${one.shared} items that several answered.`
    : `No item was answered by several people yet (${one.items} by one).`;
  const { judge: same, judge_apart: rest } = one;
  const there = same.items < one.shared ? `, where theirs is ${interval(one.people_there)}` : "";
  const judge = [
    same.items && `The judge with them: ${interval(same)}, on ${same.items} of these items${there}.`,
    rest.items && `On the ${rest.items} items that one answered, the judge with that one: ${interval(rest)}.`,
  ].filter(Boolean).join(" ") || "The judge has answered none of these items.";
  const more = one.more === null ? "How many more items an interval of that width takes cannot be said yet."
    : one.more ? `About ${one.more} more items with several answers would give an interval of width ${width}.`
      : `The interval is at most ${width} wide already.`;
  const rows = one.annotators.map((who) => h("tr", {},
    h("th", { scope: "row" }, h("bdi", {}, who.name)), h("td", {}, String(who.n_items)),
    h("td", {}, interval(who.alpha)),
    h("td", {}, who.careless ? h("span", { className: "mark" }, "agrees no more than chance") : "")));
  return h("div", { className: "card", "data-dimension": one.dimension },
    h("h2", {}, one.dimension), h("p", {}, people),
    one.curve.length > 1 ? curve(one) : null, h("p", {}, judge), h("p", {}, more),
    one.notes.map((note) => h("p", { className: "hint" }, note)),
    rows.length ? h("table", {}, h("thead", {}, h("tr", {},
      ["Annotator", "Items", "Alpha with the others", ""].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows)) : null);
}

function curve(one) {
  const [wide, high, left, foot] = [420, 180, 34, 20];
  const made = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const known = one.curve.filter((point) => point.low !== null);
  const lowest = Math.min(0, ...known.map((point) => point.low));
  const x = (items) => left + (wide - left - 6) * items / one.shared;
  const y = (alpha) => 6 + (high - foot - 6) * (1 - alpha) / (1 - lowest);
  const path = (points) => points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  const svg = made("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img",
    "aria-label": `Alpha of ${one.dimension} by the number of items, up to ${interval(one.people)}` });
  for (const level of [lowest, 0, 0.5, 1].filter((value, i, all) => all.indexOf(value) === i)) {
    svg.append(made("line", { class: "axis", x1: left, x2: wide, y1: y(level), y2: y(level),
                              "stroke-dasharray": "2 4" }),
    made("text", { x: 2, y: y(level) + 4 }, number(level)));
  }
  const band = [...known.map((p) => [p.items, p.high]), ...known.map((p) => [p.items, p.low]).reverse()];
  svg.append(made("polygon", { class: "band", points: path(band) }),
    made("polyline", { class: "line", points: path(known.map((p) => [p.items, p.estimate])) }),
    made("text", { x: left, y: high - 4 }, "items"),
    made("text", { x: wide, y: high - 4, "text-anchor": "end" }, String(one.shared)));
  return svg;
}

tried($("problem"), async () => {
  const start = await ask("start");
  version = start.version;
  $("rubric-name").textContent = start.rubric.name;
  $("notes").replaceChildren(...start.notes.map((note) => h("li", { dir: "auto" }, note)));
  tryOut(start);
  if (start.task) { shown.annotate = annotate(start); settling(start); standing(); }
  tabs([...(start.judges.length ? ["try"] : []),
    ...(start.task ? ["annotate", "settle", "standing"] : [])]);
});
