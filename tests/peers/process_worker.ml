open Lwt.Syntax

type t = {
  pid : int;
  input_channel : Lwt_io.input_channel;
  output_channel : Lwt_io.output_channel;
}

exception Ipc_error of string * exn

let pid worker = worker.pid
let input_channel worker = worker.input_channel
let output_channel worker = worker.output_channel

(* A write to a channel without a reader is then an answer, not our death. *)
let () = Sys.set_signal Sys.sigpipe Sys.Signal_ignore

let or_end_of_file operation attempt =
  Lwt.catch attempt (function
    | End_of_file | Lwt_io.Channel_closed _ | Unix.Unix_error (EPIPE, _, _) ->
        Lwt.return `End_of_file
    | Lwt.Canceled -> Lwt.fail Lwt.Canceled
    | error -> Lwt.fail (Ipc_error (operation, error)))

let read_message channel =
  or_end_of_file "read_message" (fun () ->
      let* size = Lwt_io.read_int channel in
      let payload = Bytes.create size in
      let* () = Lwt_io.read_into_exactly channel payload 0 size in
      Lwt.return (`Message payload))

let write_message channel payload =
  or_end_of_file "write_message" (fun () ->
      let size = Bytes.length payload in
      let* () = Lwt_io.write_int channel size in
      let* () = Lwt_io.write_from_exactly channel payload 0 size in
      Lwt.return `Write_ok)

let read_int channel =
  or_end_of_file "read_int" (fun () ->
      let* number = Lwt_io.read_int channel in
      Lwt.return (`Int number))

let write_int channel number =
  or_end_of_file "write_int" (fun () ->
      let* () = Lwt_io.write_int channel number in
      Lwt.return `Write_ok)

let die_of signal =
  Sys.set_signal signal Sys.Signal_default;
  Unix.kill (Unix.getpid ()) signal

let be_child f input output arg =
  let running = f input output arg in
  let (_ : Lwt_unix.signal_handler_id) =
    Lwt_unix.on_signal Sys.sigterm (fun _ -> Lwt.cancel running)
  in
  let* () =
    Lwt.catch
      (fun () -> running)
      (function
        | Lwt.Canceled -> Lwt.return (die_of Sys.sigterm)
        | error -> Lwt.fail error)
  in
  let* () = Lwt_io.flush_all () in
  exit 0

let terminate pid =
  try Unix.kill pid Sys.sigterm with Unix.Unix_error (ESRCH, _, _) -> ()

(* The workers still to be told of our end. A child inherits the list and the
   at_exit function with it: hence the owner. *)
let living : (int, int) Hashtbl.t = Hashtbl.create 7

let () =
  at_exit (fun () ->
      Hashtbl.iter
        (fun pid owner -> if owner = Unix.getpid () then terminate pid)
        living)

let close_both one other = Lwt.join [ Lwt_io.close one; Lwt_io.close other ]

let run f arg =
  let* () = Lwt_io.flush_all () in
  let parent_input, child_output = Lwt_io.pipe ~cloexec:true () in
  let child_input, parent_output = Lwt_io.pipe ~cloexec:true () in
  match Lwt_unix.fork () with
  | 0 ->
      let* () = close_both parent_input parent_output in
      be_child f child_input child_output arg
  | pid ->
      Hashtbl.replace living pid (Unix.getpid ());
      let* () = close_both child_input child_output in
      Lwt.return
        { pid; input_channel = parent_input; output_channel = parent_output }

let close worker =
  let* () = close_both worker.output_channel worker.input_channel in
  let* _, status = Lwt_unix.waitpid [] worker.pid in
  Hashtbl.remove living worker.pid;
  Lwt.return status
