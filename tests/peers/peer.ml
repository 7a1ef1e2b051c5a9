(* What the peer programs share: their channels, the programs they start, and
   loud failure. *)

open Lwt.Syntax

(* At once, past every promise and flush that might still wait for the peer. *)
let fail reason =
  prerr_endline (Filename.basename Sys.executable_name ^ ": " ^ reason);
  Unix._exit 1

let expect what holds = if not holds then fail ("expected " ^ what)

(* On Unix a file_descr is its number. *)
let descriptor number : Unix.file_descr = Obj.magic (int_of_string number)

let channels_over input output =
  ( Lwt_io.of_unix_fd ~mode:Lwt_io.input input,
    Lwt_io.of_unix_fd ~mode:Lwt_io.output output )

(* "PROGRAM" speaks over stdin and stdout, "PROGRAM 5 8" over descriptors. *)
let own_channels () =
  match Sys.argv with
  | [| _; input; output |] -> channels_over (descriptor input) (descriptor output)
  | _ -> channels_over Unix.stdin Unix.stdout

let run_child serve =
  Lwt_main.run
    (let input, output = own_channels () in
     let* () = serve input output in
     Lwt_io.flush output)

let expect_end_of_file input =
  let* answer = Process_worker.read_int input in
  Lwt.return (expect "the child's end of file" (answer = `End_of_file))

(* "PROGRAM COMMAND ARGUMENT..." converses with that command over its stdin
   and stdout, says that it is done by closing, and wants it to exit 0. *)
let converse talk command =
  let process = Lwt_process.open_process ("", command) in
  let* () = talk process#stdout process#stdin in
  let* () = Lwt_io.close process#stdin in
  let* () = expect_end_of_file process#stdout in
  let* status = process#close in
  Lwt.return (expect "exit status 0" (status = Unix.WEXITED 0))

let run_parent talk =
  match Array.to_list Sys.argv with
  | _ :: (_ :: _ as command) ->
      Lwt_main.run (converse talk (Array.of_list command))
  | _ -> fail "usage: PROGRAM COMMAND [ARGUMENT...]"
