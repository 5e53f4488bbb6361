import type { JSX } from "preact";
import { useState } from "preact/hooks";

import type { App } from "../app";
import { opg, short } from "../format";
import { Icon, type IconName } from "./icons";
import { Modal } from "./parts";

/** Everything that can be set. */
export function SettingsDialog({ app }: { app: App }): JSX.Element {
  const { settings } = app;
  const [key, setKey] = useState(app.key);
  const model = app.models.find((each) => each.name === settings.model);
  const close = () => {
    if (key !== app.key) app.setKey(key);
    app.openDialog(null);
  };
  const themes: { value: App["theme"]; icon: IconName; word: string }[] = [
    { value: "system", icon: "system", word: "System" },
    { value: "light", icon: "sun", word: "Light" },
    { value: "dark", icon: "moon", word: "Dark" },
  ];
  return (
    <Modal title="Settings" onClose={close}>
      <form
        class="settings"
        onSubmit={(event) => {
          event.preventDefault();
          close();
        }}
      >
        <fieldset class="segments">
          <legend>Appearance</legend>
          {themes.map((theme) => (
            <label key={theme.value}>
              <input type="radio" name="theme" checked={app.theme === theme.value} onChange={() => app.setTheme(theme.value)} />
              <span>
                <Icon name={theme.icon} size={16} /> {theme.word}
              </span>
            </label>
          ))}
        </fieldset>
        <label class="field">
          <span>System prompt</span>
          <textarea
            rows={3}
            value={settings.system}
            placeholder="What the model should know before the first question"
            onInput={(event) => app.set({ system: event.currentTarget.value })}
          />
        </label>
        <label class="field">
          <span>
            Temperature <output>{settings.temperature.toFixed(2)}</output>
          </span>
          <input
            type="range"
            min="0"
            max="2"
            step="0.05"
            value={settings.temperature}
            onInput={(event) => app.set({ temperature: Number(event.currentTarget.value) })}
          />
          <small>0 always takes the likeliest token.</small>
        </label>
        <div class="pair">
          <label class="field">
            <span>Most tokens</span>
            <input
              type="number"
              min="1"
              max={model?.context ?? 1_048_576}
              value={settings.maxTokens}
              onChange={(event) => app.set({ maxTokens: event.currentTarget.valueAsNumber })}
            />
          </label>
          <label class="field">
            <span>Seed</span>
            <input
              type="text"
              inputMode="numeric"
              pattern="\d{0,15}"
              placeholder="random each time"
              value={settings.seed}
              onChange={(event) => app.set({ seed: event.currentTarget.value.trim() })}
            />
          </label>
        </div>
        <small>With a fixed seed, the same question gets the same answer, so that Regenerate repeats it.</small>
        <label class="field">
          <span>API key</span>
          <input
            type="password"
            autoComplete="off"
            value={key}
            placeholder="none needed on this machine"
            onInput={(event) => setKey(event.currentTarget.value)}
          />
          <small>Kept until this tab is closed.</small>
        </label>
        {app.roster && (
          <div class={`field ${app.signerChanged ? "notice bad column" : ""}`}>
            <span>Signer of the list of workers</span>
            <p>
              <code title={app.roster.signer}>{short(app.roster.signer, 10, 8)}</code>{" "}
              {app.signerChanged ? "is not the one that this browser remembers." : "is the one that this browser met first."}
            </p>
            {app.signerChanged && (
              <button type="button" class="button" onClick={() => app.acceptSigner()}>
                Accept it
              </button>
            )}
          </div>
        )}
        {model && (
          <small>
            {model.name}: up to {model.context.toLocaleString("en")} tokens of context, {opg(model.completionPrice)} a token,{" "}
            {model.workers} {model.workers === 1 ? "worker" : "workers"}.
          </small>
        )}
        <div class="row end">
          <button type="submit" class="button primary">
            Done
          </button>
        </div>
      </form>
    </Modal>
  );
}

const SHORTCUTS: [string[], string][] = [
  [["Enter"], "Send"],
  [["Shift", "Enter"], "New line"],
  [["Esc"], "Stop the answer; close what is open"],
  [["Ctrl", "K"], "New conversation"],
  [["↑"], "Edit the last question (in an empty field)"],
  [["Alt", "R"], "Regenerate the last answer"],
  [["Alt", "P"], "Receipt of the last answer"],
  [["Alt", "W"], "Workers"],
  [["Alt", "S"], "Settings"],
  [["/"], "Go to the message field"],
  [["?"], "These shortcuts"],
];

/** The keys. */
export function ShortcutsDialog({ app }: { app: App }): JSX.Element {
  return (
    <Modal title="Keyboard shortcuts" onClose={() => app.openDialog(null)}>
      <table class="shortcuts">
        <tbody>
          {SHORTCUTS.map(([keys, what]) => (
            <tr key={what}>
              <th scope="row">{what}</th>
              <td>
                {keys.map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Modal>
  );
}
