// A sound from the microphone, as a WAV file of 16 kHz: what a browser records is decoded by the browser itself.

const RATE = 16_000;
const MOST_S = 60;

/** Records until `stop()`, or for a minute; `onTime` is told the seconds, `onEnd` the file. */
export class Recorder {
  async start(onTime, onEnd) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = ({ data }) => pieces.push(data);
    this.recorder.onstop = async () => {
      clearInterval(this.timer);
      for (const track of stream.getTracks()) track.stop();
      try {
        onEnd(await wav(new Blob(pieces)), null);
      } catch {
        onEnd(null, "Nothing was recorded. Hold it a little longer.");
      }
    };
    this.recorder.start();
    const begun = performance.now();
    this.timer = setInterval(() => {
      const seconds = (performance.now() - begun) / 1000;
      onTime(seconds);
      if (seconds >= MOST_S) this.stop();
    }, 200);
  }

  stop() {
    if (this.recorder?.state === "recording") this.recorder.stop();
  }
}

async function wav(blob) {
  const context = new OfflineAudioContext(1, RATE, RATE); // decoding brings the sound to its rate
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: sound.numberOfChannels }, (_, at) => sound.getChannelData(at));
  const bytes = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const word = (at, text) => [...text].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * sound.length, true);
  word(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // one channel
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, 2 * RATE, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true); // bits
  word(36, "data");
  bytes.setUint32(40, 2 * sound.length, true);
  for (let at = 0; at < sound.length; at++) {
    const mean = channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length;
    bytes.setInt16(44 + 2 * at, Math.round(32_767 * Math.max(-1, Math.min(1, mean))), true);
  }
  return new File([bytes.buffer], "recording.wav", { type: "audio/wav" });
}
